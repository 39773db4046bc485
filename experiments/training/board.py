"""What TensorBoard shows of a run, written beside log.csv where it is installed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import warn
from memcomp.experiments.video import Frame

FOLDER = "tensorboard"


class Board:
    """A run's file of events. No training ends for it: what goes wrong is told once, and the file ends there.

    `SummaryWriter` is not used: it writes in a thread, whose errors are tracebacks on the terminal, and imports
    tensorflow where there is one.

    Args:
        file: to write.
        start: the step at which the run starts: what earlier files tell of later steps is no longer shown.
    """

    def __init__(self, file: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.file: Path | None = file
        self._write(0, file_version="brain.Event:2")
        self._write(start + 1 if start else 0, session_log=SessionLog(status=SessionLog.START))

    @classmethod
    def beside(cls, folder: Path, start: int) -> Board | None:
        """Make the board of the run in `folder`; None where TensorBoard is not installed, or does not work."""
        if find_spec("tensorboard") is None:
            return None
        try:
            import torch.utils.tensorboard  # noqa: F401
        except Exception as error:  # versions of it and of protobuf that do not fit each other raise many things
            warn(f"TensorBoard is installed but cannot be imported ({error}): log.csv alone is written")
            return None
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads the files in the order of their names
        return cls(folder / FOLDER / f"events.out.tfevents.{seconds:010d}.{rest:09d}", start)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write numbers of a step, a curve for each name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=found))

    def picture(self, step: int, name: str, picture: Frame) -> None:
        """Write a picture (H, W, 3) uint8 of a step."""
        from torch.utils.tensorboard.summary import image

        self._write(step, summary=image(name, picture, dataformats="HWC"))

    def _write(self, step: int, **content: Any) -> None:
        """Append an event to the file, unless that failed before."""
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard import RecordWriter

        if self.file is None:
            return
        event = Event(wall_time=time.time(), step=step, **content)
        try:
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            warn(f"{self.file}: cannot be written ({error.strerror or error}): TensorBoard is told no more of this run")
            self.file = None
