"""Pictures found by the names that a file of labels gives: with or without folders, with or without a suffix."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.sharding.sources.sample import stem_of
from pipelines.sharding.sources.walk import is_image

Row = tuple[int, str, str]  # line, name of the picture, label


class Finder:
    """An index of pictures by the last part of their path, with and without its suffix."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in paths:
            name = path.rpartition("/")[2]
            self._by_name.setdefault(name, []).append(path)
            self._by_stem.setdefault(stem_of(name), []).append(path)

    def find(self, name: str) -> list[str]:
        """Return the pictures that agree with most of ``name``'s folders, counted from its end: one, if all is well."""
        parts = name.replace("\\", "/").split("/")
        found = self._by_name.get(parts[-1]) or self._by_stem.get(parts[-1]) or []
        if len(found) < 2:
            return found
        common = [_common(parts[:-1], path.split("/")[:-1]) for path in found]
        return [path for path, count in zip(found, common, strict=True) if count == max(common)]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many folders agree, from the last one on."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def located(
    rows: Sequence[Row], paths: Sequence[str], file: Path, folder: Path
) -> tuple[dict[str, Row], list[tuple[Row, Row]]]:
    """Return the row of each picture that has one, by path, and pairs of rows that name one picture and one label.

    ``file`` holds the rows, ``folder`` the pictures.
    Raises DataError for rows whose picture is missing or ambiguous, and for two rows that contradict each other.
    """
    finder = Finder(paths)
    missing: list[Row] = []
    taken: dict[str, Row] = {}
    repeated: list[tuple[Row, Row]] = []
    for row in rows:
        line, name, label = row
        found = finder.find(name)
        if len(found) > 1:
            raise DataError(
                f"{file}, line {line}: {name!r} may be {found[0]} or {found[1]}: write the path below {folder}"
            )
        if not found:
            missing.append(row)
        elif (earlier := taken.setdefault(found[0], row))[2] != label:
            raise DataError(
                f"{file}, line {line}: {found[0]} is {label!r}, but {earlier[2]!r} in line {earlier[0]}: keep one of "
                "the two; a picture has one label"
            )
        elif earlier is not row:
            repeated.append((earlier, row))
    if missing:
        line, name, _ = missing[0]
        advice = "" if any(is_image(n) for _, n, _ in missing) else f"{name}.jpg, .png or another picture; "
        raise DataError(
            f"{len(missing)} of the {len(rows)} pictures in {file} are not below {folder}; the first, in line {line}: "
            f"{name!r} ({advice}copy them there, or take their lines out)"
        )
    return taken, repeated
