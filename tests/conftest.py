"""Tests share few cores: one thread each, and no example has to be ready within a time.

Signals do what they do in a terminal, for the processes that tests start as well: a process in the background has been
told to ignore some, and hands that on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _leaves_no_record_here() -> Iterator[None]:
    """A logger without a directory gets one below the Trainer's, which is the present one unless a test says so."""
    here = Path.cwd()
    is_ours = (here / "pyproject.toml").exists()
    yield
    assert not (is_ours and (here / "gradwatch").exists()), "a record lies in the working directory"
