"""The log of a run for TensorBoard, live: ``tensorboard --logdir runs``."""

from pathlib import Path
from typing import Any

from alexnet.errors import AlexNetError
from alexnet.log import RunLog

EVENTS = "tensorboard"  # a folder in the run folder


class BoardLog(RunLog):
    """A log that also writes its numbers to TensorBoard, by step or by epoch. Raises AlexNetError without the wheel."""

    def __init__(self, path: Path, step: int = 0, epoch: int = 0) -> None:
        super().__init__(path, step, epoch)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise AlexNetError("--tensorboard needs tensorboard: pip install 'alexnet-pipelines[board]'") from error
        self._board = SummaryWriter(path.with_name(EVENTS))

    def write(self, kind: str, **values: Any) -> None:
        super().write(kind, **values)
        for name, value in values.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, values[kind])
        self._board.flush()
