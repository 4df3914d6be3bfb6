"""Which of the listed images are taken, under which keys and in which order: the same rules for every layout."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import MAX_KEY_LENGTH, Sample, key_of


def distinct(samples: list[Sample], wnids: Sequence[str]) -> list[Sample]:
    """Give keys that occur more than once their class in front; where that is not enough, a digest.

    The digest is of class and file name, the same in every layout, and at last of the whole path.
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
    """Train in a global permutation drawn from ``seed``, others by key.

    Sorting by a digest is a permutation that no library's version can change.
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
    """Indices, ascending, of the first N classes or of those that a file lists, a wnid a line. Raises DataError."""
    if classes.isdecimal():
        if int(classes) > len(wnids):
            raise DataError(f"--classes {classes}: there are only {len(wnids)} classes")
        return list(range(int(classes)))
    path = Path(classes)
    if not path.is_file():
        raise DataError(f"--classes {classes}: no such file; give a file with a wnid a line, or a number")
    wanted = {
        words[0] for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if (words := line.split())
    }
    unknown = sorted(wanted - set(wnids))
    if unknown or not wanted:
        what = f"{unknown[0]!r} is none of the {len(wnids)} classes of the source" if unknown else "it is empty"
        raise DataError(f"--classes {classes}: {what}; write one wnid a line, such as {wnids[0]}")
    return [label for label, wnid in enumerate(wnids) if wnid in wanted]


def of_classes(samples: list[Sample], labels: list[int], split: str) -> list[Sample]:
    """The samples of these classes, each labelled with its class's place in ``labels``."""
    rank = {label: i for i, label in enumerate(labels)}
    kept = [sample._replace(label=rank[sample.label]) for sample in samples if sample.label in rank]
    if not kept:
        raise DataError(f"--classes: {split} has no image of these {len(labels)} classes; leave it out with --splits")
    return kept


def first_of_each_class(samples: list[Sample], count: int, wnids: Sequence[str]) -> list[Sample]:
    """The first ``count`` samples of each class. Raises DataError where a class has fewer."""
    taken: Counter[int] = Counter()
    kept = []
    for sample in samples:
        if taken[sample.label] < count:
            taken[sample.label] += 1
            kept.append(sample)
    for label, wnid in enumerate(wnids):
        if taken[label] < count:
            raise DataError(
                f"--per-class {count}: {wnid} has only {taken[label]} train images; ask for at most so many"
            )
    return kept
