"""The page of a run while the run goes on: made by ``gradwatch report`` in a process of its own.

Reading an event file takes long, and Python's lock with it; so training goes on beside it, and only the end of a run
waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

NAME = "gradwatch.html"
LIMIT_S = 300.0
"""How long a page may take while training goes on."""
CLOSE_S = 20.0
"""How long the end of training waits for the last page."""


class PageMaker:
    """Makes the page of one run, which lies beside its event file; a new one takes the place of the one before.

    Args:
        directory: Where the event file lies: a local directory.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._page = Path(directory) / NAME
        self._unfinished = self._page.with_suffix(".part")
        self._process: subprocess.Popen[str] | None = None
        self._began = 0.0

    def begin(self) -> None:
        """Begin to make a page of what lies on the disk, unless one is being made."""
        if self._process is not None:
            return
        options = ["--run", os.curdir, "--html", str(self._unfinished)]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lightning_gradwatch", "report", self._directory, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is meant for the training
        )

    def take(self) -> Path | None:
        """A page that has been made since; None if there is none.

        Raises:
            OSError: If it could not be made.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            if time.monotonic() - self._began > LIMIT_S:
                self.close()
                raise TimeoutError(f"the page was not there after {LIMIT_S:.0f} seconds")
            return None
        self._process = None
        return self._finished(process)

    def last(self) -> Path:
        """A page of what lies on the disk now; waits for it, but not for ever.

        Raises:
            OSError: If it could not be made, or not in time.
        """
        self.close()  # what is under way knows less
        self.begin()
        assert self._process is not None
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.close()
            command = f"gradwatch report {self._directory} --html {NAME}"
            raise TimeoutError(
                f"the last page was not there after {CLOSE_S:.0f} seconds; make it by `{command}`"
            ) from None
        process, self._process = self._process, None
        return self._finished(process)

    def close(self) -> None:
        """Give up what is being made."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._unfinished.unlink(missing_ok=True)

    def _finished(self, process: subprocess.Popen[str]) -> Path:
        # the exit status tells of the run, and not of the page
        _, words = process.communicate()
        if not self._unfinished.is_file():
            raise OSError(words.strip()[-500:] or f"`gradwatch report` ended with {process.returncode}")
        os.replace(self._unfinished, self._page)
        return self._page
