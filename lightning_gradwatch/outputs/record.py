"""The record of a run: an event file of our own, where no logger of the user's can hold what tab and report show."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from lightning_gradwatch.asking import ask
from lightning_gradwatch.outputs.tensorboard import is_writable
from lightning_gradwatch.paths import is_url

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 20
"""How much of it a process that is killed may take along."""


def appends_at_url(logger: object) -> bool:
    """Whether a logger's event file is at a URL, and written by TensorBoard's own writer: not for us.

    That writer appends event by event, and training waits for it. Where a store cannot append, each event takes the
    place of all before it, or breaks the writer.
    """
    if isinstance(logger, Record):
        return False
    experiment = ask(logger, "experiment")
    return is_writable(experiment) and is_url(str(experiment.log_dir))


class Record:
    """An event file in a directory; it stands among the loggers, and is made when it is first written to.

    Args:
        directory: Where it lies, or its URL.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)
        self._summary: SummaryWriter | None = None

    @property
    def experiment(self) -> SummaryWriter:
        """The writer, as TensorBoardLogger has one.

        Raises:
            OSError: If the directory cannot be made or written to.
        """
        if self._summary is None:
            if is_url(self.directory):
                from lightning_gradwatch.outputs.pieces import RemoteWriter

                self._summary = RemoteWriter(self.directory, flush_secs=FLUSH_SECONDS)
                return self._summary
            from torch.utils.tensorboard import SummaryWriter

            # a place that cannot be is told of here in one word; making it would run into every one of its parts
            with contextlib.suppress(FileNotFoundError):
                os.stat(self.directory)
            self._summary = SummaryWriter(self.directory, flush_secs=FLUSH_SECONDS)
        return self._summary

    def settle(self, seconds: float) -> None:
        """Wait until what goes to a URL is there, but not for ever.

        Raises:
            OSError: If it cannot be written, or it takes longer.
        """
        if self._summary is not None and is_url(self.directory):
            from lightning_gradwatch.outputs.pieces import RemoteWriter

            assert isinstance(self._summary, RemoteWriter)
            self._summary.settle(seconds)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._summary is not None:
            self._summary.close()
