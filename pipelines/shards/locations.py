"""The lines of the index of many samples at once, without a call for each: for compiled code."""

import numpy as np

from pipelines.shards.records import Records


class Locations:
    """The places of a split's index lines in memory. Each shard's index is read when the first of its samples is asked
    for; the ``records`` keep it there."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ends = np.array(records.ends)
        self._read = np.zeros(len(self._ends), bool)
        self._files = np.full(len(self._ends), -1, np.int32)
        self._lines, self._lengths = np.empty(len(records), np.uintp), np.empty(len(records), np.int32)

    def of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return N file descriptors, or -1, N addresses of lines and N lengths of them.

        Raises DataError for a damaged index and a shard that cannot be opened.
        """
        shards = np.searchsorted(self._ends, samples, "right")
        for number in np.unique(shards[~self._read[shards]]).tolist():
            self._add(number)
        return self._files[shards], self._lines[samples], self._lengths[samples]

    def _add(self, number: int) -> None:
        file, address, ends = self._records.lines(number)
        stop = int(self._ends[number])
        own = slice(stop - len(ends) + 1, stop)
        self._lines[own] = address + ends[:-1] + 1
        self._lengths[own] = np.diff(ends) - 1
        self._files[number], self._read[number] = file, True
