"""TurboLoader: a tar of JPEGs to normalised batches in one pass of its C++ threads, as its README shows for training.

It gives no labels: they belong to ``meta["indices"]``, as its README says. Before it is measured, images that can be
recognised in any crop are loaded, to check that each index belongs to its pixels (ramps.py). It cannot take a crop
without resizing: with its RandomCrop it first resizes the whole image to the size of the batch.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.ramps import check_epochs, write_ramps
from benchmarks.peers.serve import PeerSettings, Rounds, answer


def write(files: list[tuple[str, int]], tar: Path) -> None:
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (path, _) in enumerate(files):
            archive.add(path, f"{number:08d}.jpg")


class Epochs:
    """Batches of one epoch per iteration, each epoch in another order: N,3,size,size float32 and N labels."""

    def __init__(self, tar: Path, labels: list[int], settings: PeerSettings, normalise: bool = True) -> None:
        import turboloader

        if settings.crop != "resized":
            raise ValueError("TurboLoader takes no crop without resizing: --crops resized")
        self._labels, self._epoch = np.array(labels), 0
        self._loader = turboloader.DataLoader(
            str(tar),
            batch_size=settings.batch_size,
            image_size=settings.size,
            output_format="pytorch",
            shuffle=True,
            train_aug=True,
            drop_last=True,
            transform=turboloader.ImageNetNormalize() if normalise else None,
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self._loader.set_epoch(self._epoch)
        self._epoch += 1
        for images, about in self._loader:
            if about["decode_failures"]:
                raise ValueError("TurboLoader could not decode an image: it gave a black one")
            yield images, self._labels[about["indices"]]


def rounds() -> Rounds:
    settings = PeerSettings.from_command_line()
    # Its pool has a thread for each core that the process may use when it is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    ramps, few = write_ramps(settings.work / "ramps"), replace(settings, batch_size=16)
    tar = settings.once("ramps.tar", partial(write, ramps))
    pixels = check_epochs(Epochs(tar, [label for _, label in ramps], few, normalise=False), few.batch_size)
    files = settings.files()
    epochs = Epochs(settings.once("train.tar", partial(write, files)), [label for _, label in files], settings)
    description = "float32 N,3,H,W, normalised; libjpeg-turbo"
    return Rounds(lambda: sum(len(labels) for _, labels in epochs), description, pixels=pixels)


if __name__ == "__main__":
    answer(rounds)
