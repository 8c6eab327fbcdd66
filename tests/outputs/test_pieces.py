"""Event files at a URL, in pieces: whole for every reader, at any moment, whatever the store can do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import pieces
from lightning_gradwatch.outputs.pieces import RemoteWriter
from lightning_gradwatch.outputs.tensorboard import is_writable
from lightning_gradwatch.remote import RemoteError
from tests.stores import Objects, broken, clear, content
from tests.tasks import Classifier, deep_net, fit, scalars
from tests.tensorboard.board import Board

URL = "objects://bucket/run"


@pytest.fixture(autouse=True)
def _empty_stores() -> Iterator[None]:
    clear()
    yield
    clear()


def opened() -> Any:
    return RemoteWriter(URL, flush_secs=1000)


def test_torch_s_writer_takes_it_for_a_writer_of_its_own() -> None:
    writer = opened()
    assert is_writable(writer)
    writer.add_scalar("x", 1.0, 1)
    writer.add_text("said", "something", 2)
    writer.close()
    assert writer.all_writers is None
    events = EventAccumulator(URL).Reload()
    assert scalars(events, "x") == {1: 1.0}
    assert len(events.Tensors("said/text_summary")) == 1


def test_a_reader_sees_each_event_once_and_no_piece_is_written_anew_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    writer, reader = opened(), EventAccumulator(URL, size_guidance={"scalars": 0})
    written: list[int] = []
    write = Objects.pipe_file

    def noted(store: Objects, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        written.append(len(value))
        write(store, path, value, *arguments, **options)

    monkeypatch.setattr(Objects, "pipe_file", noted)
    for step in range(500):
        writer.add_scalar("x", float(step), step)
        if step % 7 == 0:
            writer.settle(10.0)
            assert list(scalars(reader.Reload(), "x")) == list(range(step + 1))
    writer.close()
    assert list(scalars(reader.Reload(), "x")) == list(range(500))
    files = content(URL)
    assert len(files) > 5
    assert sorted(files) == list(files)
    assert max(map(len, files.values())) < 2200
    assert sum(written) < 10 * sum(map(len, files.values()))


def test_what_comes_at_once_goes_into_as_many_pieces_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    writer = opened()
    for step in range(500):
        writer.add_scalar("x", float(step), step)
    writer.close()
    assert len(content(URL)) > 5
    assert list(scalars(EventAccumulator(URL, size_guidance={"scalars": 0}).Reload(), "x")) == list(range(500))


def test_nothing_is_lost_over_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gradwatch.outputs.worker.PAUSES_S", (0.01,) * 1000)
    writer = opened()
    with broken(Objects, OSError("down")):
        writer.add_scalar("x", 1.0, 1)
        writer.flush()
        with pytest.raises(RemoteError, match="down"):
            writer.settle(0.1)
        writer.add_scalar("x", 2.0, 2)
    writer.close()
    assert scalars(EventAccumulator(URL).Reload(), "x") == {1: 1.0, 2: 2.0}


def test_what_waits_for_the_network_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_WAITING_BYTES", 10_000)
    monkeypatch.setattr("lightning_gradwatch.outputs.worker.PAUSES_S", (0.01,) * 1000)
    writer = opened()

    def write(num_events: int) -> None:
        for step in range(num_events):
            writer.add_scalar("x", 1.0, step)

    with broken(Objects, OSError("down")), pytest.raises(RemoteError, match="too many events are waiting"):
        write(2000)
    writer.close()
    assert len(scalars(EventAccumulator(URL, size_guidance={"scalars": 0}).Reload(), "x")) > 100


@pytest.mark.parametrize("loader", ["--load_fast=true", "--load_fast=false"])
def test_tensorboard_shows_pieces_as_one_run(loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradWatchWarning)
        watch = GradWatch(record=f"file://{tmp_path}/run")
        fit(watch, Classifier(deep_net(depth=8)), logger=False, max_steps=60, log_every_n_steps=1)
    assert len(list(tmp_path.rglob("*tfevents*"))) > 5
    with Board(tmp_path, loader) as board:
        board.wait_for("run", 59)
        assert board.get("heatmap", run="run", quantity="grad_norm").frame[0]["steps"] == list(range(60))
        assert board.get("runs").json["runs"][0]["status"] == "sick"
