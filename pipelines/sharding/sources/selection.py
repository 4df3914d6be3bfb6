"""Selection of the listed images, their keys and their order, by the same rules for every layout."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def chosen_classes(wnids: Sequence[str], words: Mapping[str, str], classes: str) -> list[int]:
    """Return the indices, ascending, of the first N classes or of those in a file, one per line. Raises DataError.

    A line is a class, with or without words behind it ("n01440764 tench"), or its name, or one of its names
    ("golden retriever") in any case.
    """
    if classes.isdecimal():
        if int(classes) > len(wnids):
            raise DataError(f"--classes {classes}: there are only {len(wnids)} classes")
        return list(range(int(classes)))
    path = Path(classes)
    if not path.is_file():
        raise DataError(f"--classes {classes}: no such file; give a file with one class per line, or a number")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    known = _names_of(wnids, words)
    found = {label for line in lines if line for label in [_class_in(line, wnids, known, classes)]}
    if not found:
        raise DataError(f"--classes {classes}: it is empty; write one class per line, such as {wnids[0]}")
    return sorted(found)


def _names_of(wnids: Sequence[str], words: Mapping[str, str]) -> dict[str, set[int]]:
    """Return the classes that each name may mean: a folder's name, all words of a class, or one of its names."""
    known: dict[str, set[int]] = {}
    for label, wnid in enumerate(wnids):
        all_words = words.get(wnid, wnid)
        for name in {wnid, all_words, *all_words.split(",")}:
            known.setdefault(_plain(name), set()).add(label)
    return known


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _class_in(line: str, wnids: Sequence[str], known: Mapping[str, set[int]], classes: str) -> int:
    """Return the class that a line of the file ``classes`` names. Raises DataError."""
    for name in (line, line.split()[0]):
        if name in wnids:
            return wnids.index(name)
        if name == line and (meant := known.get(_plain(line))):
            if len(meant) > 1:
                some = " and ".join(wnids[label] for label in sorted(meant))
                raise DataError(f"--classes {classes}: {line!r} may be {some}: write one of these instead")
            return next(iter(meant))
    raise DataError(
        f"--classes {classes}: {line!r} is none of the {len(wnids)} classes of the source; write one class per line, "
        f"such as {wnids[0]}"
    )


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
