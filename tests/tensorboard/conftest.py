"""Trainings, and a browser for each module, that the tests of the tab share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.tensorboard.browser import chromium
from tests.tensorboard.logs import STORED_RUN, write_logs


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one run of each kind."""
    directory = tmp_path_factory.mktemp("logs")
    write_logs(directory)
    return directory


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that an early version wrote."""
    directory = tmp_path_factory.mktemp("stored")
    shutil.unpack_archive(STORED_RUN, directory)
    return directory
