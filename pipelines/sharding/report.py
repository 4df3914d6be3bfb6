"""The lines that sharding prints at its end."""

from collections import Counter

from pipelines.images.walk import counted
from pipelines.shards.manifest import Manifest
from pipelines.untrusted import printable


def report(manifest: Manifest, source_bytes: dict[str, int], left_out: Counter[str], seconds: float) -> None:
    """Print a table of the written splits, the first quarantined images and the counts of files that were not taken."""
    print(f"{'':<8}{'images':>10}{'shards':>8}{'source MB':>12}{'written MB':>12}{'ratio':>8}")
    for name, split in manifest.splits.items():
        written = sum(shard.bytes for shard in split.shards)
        read = source_bytes[name]
        print(
            f"{name:<8}{split.samples:>10}{len(split.shards):>8}{read / 1e6:>12.1f}{written / 1e6:>12.1f}"
            f"{written / read:>8.2f}"
        )
    print(
        f"{seconds:.0f} s; repaired: {len(manifest.repaired)}, quarantined: {len(manifest.quarantined)} "
        "(listed in manifest.json)"
    )
    for entry in manifest.quarantined[:5]:
        print(printable(f"  {entry['source']}: {entry['reason']}"))
    if left_out:
        print(printable(f"left out: {counted(left_out)}"))


def report_finished(manifest: Manifest, where: object) -> None:
    """Print that there is nothing to do, and the counts."""
    counts = ", ".join(f"{split.samples} {name} images" for name, split in manifest.splits.items())
    print(
        f"{where} is finished already: {counts} of {len(manifest.classes)} classes; quarantined: "
        f"{len(manifest.quarantined)}"
    )
