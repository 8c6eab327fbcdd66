"""Event files with known damage, written by TensorBoard's own writer and by ours."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_gradwatch.core.records import Alert
from tests.tensorboard.record import Record

NAME = "events.out.tfevents.1.x"
LAYERS = ("a", "b", "c")


def event(step: int, size: int = 3) -> Event:
    """A scalar at a step, with a tag of some length."""
    value = Summary.Value(tag="t" * size, simple_value=1)
    return Event(wall_time=1.5 + step, step=step, summary=Summary(value=[value]))


def write(path: Path, *events: Event, append: bool = False) -> list[int]:
    """Write a file; returns where each record begins, and where the last one ends."""
    with path.open("ab" if append else "wb") as file:
        places = [file.tell()]
        writer = RecordWriter(file)
        for one in events:
            writer.write(one.SerializeToString())
            places.append(file.tell())
    return places


def noise(size: int) -> bytes:
    """Random bytes, the same every time."""
    return random.Random(size).randbytes(size)


def spoil(path: Path, place: int, content: bytes) -> None:
    """Write over a part of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def write_healthy(directory: Path, *alerts: Alert, first: int = 0, name: str = NAME) -> Path:
    """A run of 100 steps, with the document of its alerts at both ends; the event file."""
    before = set(directory.glob("*"))
    record = Record(directory, LAYERS)
    record.write_alerts(*alerts)
    for step in range(first, first + 100):
        record.write(step, [[1.0, 1.0, 1.0]])
    record.close(*alerts)
    (file,) = set(directory.glob("*")) - before
    return file.rename(directory / name)


def middle(file: Path) -> int:
    """Where the middle one of a file's records begins."""
    content, places = file.read_bytes(), [0]
    while places[-1] < len(content):
        places.append(places[-1] + 16 + struct.unpack_from("<Q", content, places[-1])[0])
    return places[len(places) // 2]
