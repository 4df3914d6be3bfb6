"""Selection of the listed images, their keys and their order, by the same rules for every layout."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import MAX_KEY_LENGTH, Sample, key_of


def distinct(samples: list[Sample], wnids: Sequence[str]) -> list[Sample]:
    """Make keys unique: put the class in front of repeated ones; if that is not enough, append a digest.

    The digest is of class and file name, the same in every layout, or, as a last resort, of the whole path.
    Raises DataError for a sample that occurs twice.
    """

    def class_in_front(sample: Sample) -> str:
        return key_of(f"{wnids[sample.label]}_{sample.key}")

    def name_behind(sample: Sample) -> str:
        return _with_digest(sample.key, f"{wnids[sample.label]}/{sample.source.rpartition('/')[2]}")

    def path_behind(sample: Sample) -> str:
        return _with_digest(sample.key, sample.source)

    rules: tuple[Callable[[Sample], str], ...] = (class_in_front, name_behind, path_behind)
    for rule in rules:
        if len({sample.key for sample in samples}) == len(samples):
            return samples
        counts = Counter(sample.key for sample in samples)
        samples = [sample._replace(key=rule(sample)) if counts[sample.key] > 1 else sample for sample in samples]
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise DataError(f"{sample.source} is there twice, or cannot be told from another: rename or remove one")
        seen.add(sample.key)
    return samples


def _with_digest(key: str, text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{key[: MAX_KEY_LENGTH - 9]}_{digest}"


def ordered(samples: list[Sample], split: str, seed: int) -> list[Sample]:
    """Return train in a global permutation drawn from ``seed``, other splits sorted by key.

    Sorting by a digest gives a permutation that no library's version can change.
    """
    if split != "train":
        return sorted(samples, key=lambda sample: sample.key)
    start = hashlib.sha256(f"{seed}/".encode())

    def digest(sample: Sample) -> bytes:
        state = start.copy()
        state.update(sample.key.encode())
        return state.digest()

    return sorted(samples, key=digest)


def chosen_classes(wnids: Sequence[str], classes: str) -> list[int]:
    """Return the indices, ascending, of the first N classes or of a file's, one wnid per line. Raises DataError."""
    if classes.isdecimal():
        if int(classes) > len(wnids):
            raise DataError(f"--classes {classes}: there are only {len(wnids)} classes")
        return list(range(int(classes)))
    path = Path(classes)
    if not path.is_file():
        raise DataError(f"--classes {classes}: no such file; give a file with one wnid per line, or a number")
    wanted = {
        words[0] for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if (words := line.split())
    }
    unknown = sorted(wanted - set(wnids))
    if unknown or not wanted:
        what = f"{unknown[0]!r} is none of the {len(wnids)} classes of the source" if unknown else "it is empty"
        raise DataError(f"--classes {classes}: {what}; write one wnid per line, such as {wnids[0]}")
    return [label for label, wnid in enumerate(wnids) if wnid in wanted]


def of_classes(samples: list[Sample], labels: list[int], split: str) -> list[Sample]:
    """Return the samples of these classes, labelled by their class's place in ``labels``. Raises DataError if none."""
    place = {label: i for i, label in enumerate(labels)}
    kept = [sample._replace(label=place[sample.label]) for sample in samples if sample.label in place]
    if not kept:
        raise DataError(f"--classes: {split} has no image of these {len(labels)} classes; leave it out with --splits")
    return kept


def first_of_each_class(samples: list[Sample], count: int, wnids: Sequence[str]) -> list[Sample]:
    """Return the first ``count`` samples of each class. Raises DataError if a class has fewer."""
    taken: Counter[int] = Counter()
    kept = []
    for sample in samples:
        if taken[sample.label] < count:
            taken[sample.label] += 1
            kept.append(sample)
    for label, wnid in enumerate(wnids):
        if taken[label] < count:
            raise DataError(
                f"--per-class {count}: {wnid} has only {taken[label]} train images; ask for at most that many"
            )
    return kept
