"""The train images of a shard folder as CLASS/KEY.jpg, for loaders that read files or have a format of their own."""

import json
from pathlib import Path

from tqdm import tqdm

from pipelines import DataError, Manifest
from pipelines.shards.records import Records


def extract_images(manifest: Manifest, folder: Path) -> Path:
    """Write the images below ``folder`` unless they are there already. Return their folder. Raises DataError.

    It is an error if the shards are raw, or if ``folder`` was made from others.
    """
    if manifest.image.encoding != "jpeg":
        raise DataError(
            f"{manifest.folder} holds no JPEGs as sharding writes them, which the peers read: take shards of JPEGs"
        )
    images, done = folder / "images", folder / "images.json"
    wanted = {"shards": [shard.sha256 for shard in manifest.split("train").shards]}
    if done.is_file() and json.loads(done.read_bytes()) == wanted:
        return images
    if folder.exists():
        raise DataError(f"{folder} has been made from other shards: delete it, or choose another --work")
    for number in range(len(manifest.classes)):
        (images / f"{number:0{manifest.label_width}d}").mkdir(parents=True)
    records = Records(manifest, "train")
    for sample in tqdm(range(len(records)), desc="images for the peers", unit=" images"):
        record = records.read(sample)
        (images / f"{record.label:0{manifest.label_width}d}" / f"{record.key}.jpg").write_bytes(record.data)
    done.write_text(json.dumps(wanted))
    return images
