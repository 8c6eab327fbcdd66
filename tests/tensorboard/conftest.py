"""Trainings that the tests of the tab share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tensorboard.logs import write_logs


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one run of each kind."""
    directory = tmp_path_factory.mktemp("logs")
    write_logs(directory)
    return directory
