"""An event file, read as far as it is as it was written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_gradwatch.reading import event_file, listing
from lightning_gradwatch.reading.event_file import EventFile
from tests.damaged import NAME, event, noise, spoil, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def opened(path: Path) -> EventFile:
    return EventFile(str(path))


def steps(file: EventFile) -> list[int]:
    return [one.step for one in file.read()]


def test_it_reads_what_tensorboard_reads_whatever_byte_is_wrong(path: Path) -> None:
    places = write(path, *(event(step, size=1 + 40 * step) for step in range(12)))
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ chance.randrange(1, 256)]) + whole[place + 1 :])
        file = opened(path)
        num_sound = sum(end <= place for end in places[1:])
        assert steps(file) == [one.step for one in LegacyEventFileLoader(str(path)).Load()] == list(range(num_sound))
        assert file.damage is not None
        assert file.damage["unread_bytes"] == len(whole) - places[num_sound]
        assert file.damage["after_step"] == (num_sound - 1 if num_sound else None)


def test_damage_is_told_with_the_last_step_and_the_bytes_that_are_left(path: Path) -> None:
    places = write(path, *(event(step) for step in (0, 700, 50, 900)))
    spoil(path, places[3] + 20, noise(5))
    file = opened(path)
    assert steps(file) == [0, 700, 50]
    unread = places[4] - places[3]
    assert file.damage == {
        "file": NAME,
        "after_step": 700,
        "unread_bytes": unread,
        "message": f"Damaged after step 700, {unread} bytes unread: {NAME}.",
    }


def test_a_record_that_the_end_cuts_off_is_no_damage(path: Path) -> None:
    places = write(path, *(event(step) for step in range(3)))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        file = opened(path)
        assert len(steps(file)) == sum(end <= size for end in places[1:])
        assert file.damage is None, size


@pytest.mark.parametrize(
    "content", [noise(1700), b"this is no record" * 100, bytes(500)], ids=["noise", "text", "zeros"]
)
def test_what_is_no_event_file_is_damaged_from_the_beginning(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    file = opened(path)
    assert steps(file) == []
    assert file.damage is not None
    assert file.damage["message"] == f"Damaged from the beginning, {len(content):,} bytes unread: {NAME}."


def test_a_record_that_is_whole_but_no_event_is_damage(path: Path) -> None:
    places = write(path, event(3))
    with path.open("ab") as file:
        RecordWriter(file).write(b"\xff" * 30)
    write(path, event(4), append=True)
    found = opened(path)
    assert steps(found) == [3]
    assert found.damage is not None
    assert found.damage["unread_bytes"] == path.stat().st_size - places[1]


@pytest.mark.parametrize("block", [64, 1000, 2**20])
def test_a_file_that_grows_by_any_number_of_bytes_is_read_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(event_file, "BLOCK_BYTES", block)  # records are longer than a block, and shorter
    write(path, *(event(step, size=chance) for step, chance in enumerate((1, 900, 3, 5000, 20, 60, 1))))
    whole, chance = path.read_bytes(), random.Random(1)
    path.write_bytes(b"")
    file, found, place = opened(path), [], 0
    while place < len(whole):
        size = chance.randrange(1, 700)
        with path.open("ab") as growing:
            growing.write(whole[place : place + size])
        place += size
        found += steps(file)
        assert file.damage is None
    assert found == list(range(7))


def test_who_stops_in_between_goes_on_there(path: Path) -> None:
    write(path, *(event(step) for step in range(4)))
    file = opened(path)
    assert next(file.read()).step == 0
    assert steps(file) == [1, 2, 3]


def test_damage_that_heals_is_forgotten(path: Path) -> None:
    """On a mounted directory the end of a file that is being written may be zeros for a moment."""
    places = write(path, *(event(step) for step in range(3)))
    whole = path.read_bytes()
    spoil(path, places[1], bytes(places[3] - places[1]))
    file = opened(path)
    assert steps(file) == [0]
    assert file.damage is not None
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    assert steps(file) == [1, 2]
    assert file.damage is None


def test_a_longer_copy_in_its_place_is_read_on(path: Path) -> None:
    write(path, event(0), event(1))
    file = opened(path)
    assert steps(file) == [0, 1]
    copy = path.with_name("copy")
    write(copy, event(0), event(1), event(2))
    copy.replace(path)
    assert steps(file) == [2]
    assert not file.is_replaced


@pytest.mark.parametrize("others", [(7, 8, 9), (7,), ()])
def test_another_file_in_its_place_is_noticed(path: Path, others: tuple[int, ...]) -> None:
    write(path, event(0), event(1))
    file = opened(path)
    assert steps(file) == [0, 1]
    write(path, *map(event, others))
    os.utime(path, (1, 1))
    assert steps(file) == []
    assert file.is_replaced
    assert file.damage is not None
    assert file.damage["message"] == f"Replaced while it was read: {NAME}."


def test_a_file_that_is_removed_is_no_damage_and_what_came_of_it_is_to_be_forgotten(path: Path) -> None:
    write(path, event(0))
    file, never = opened(path), opened(path)
    assert steps(file) == [0]
    path.unlink()
    assert (steps(file), file.is_replaced) == ([], True)
    assert (steps(never), never.damage, never.is_replaced) == ([], None, False)


def test_what_is_no_file_or_cannot_be_read_is_said(path: Path) -> None:
    found = {}
    for name, target in {"link": "nowhere", "loop": "loop", "errors": "/proc/self/mem", "endless": "/dev/zero"}.items():
        (path.parent / name).symlink_to(target)
    os.mkfifo(path.parent / "pipe")
    for name in ("link", "loop", "errors", "endless", "pipe"):
        file = opened(path.parent / name)
        assert steps(file) == []
        assert file.damage is not None, name
        found[name] = file.damage["message"]
    assert found["link"] == "Cannot be read (No such file or directory): link."
    assert "symbolic links" in found["loop"]
    assert found["endless"] == "Cannot be read (it is no regular file): endless."
    assert found["pipe"] == "Cannot be read (it is no regular file): pipe."
    assert found["errors"] == "Cannot be read (Input/output error): errors."


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = write(path, event(0), event(1))
    spoil(path, places[1] + 14, b"\xff\xff")
    file = opened(path)
    file.skip()
    sizes: list[tuple[str, int, int]] = []

    def counted(path: str, start: int, num_bytes: int) -> bytes:
        sizes.append((path, start, num_bytes))
        return listing.read_piece(path, start, num_bytes)

    monkeypatch.setattr(event_file, "read_piece", counted)
    file.skip()
    assert sizes == []
    write(path, event(2), append=True)
    file.skip()
    assert len(sizes) == 1
    assert file.damage is not None
    assert file.damage["unread_bytes"] == path.stat().st_size - places[1]


def test_an_event_without_a_summary_has_no_step(path: Path) -> None:
    places = write(path, Event(wall_time=1.0, file_version="brain.Event:2"), event(1))
    spoil(path, places[1] + 1, b"\xff")
    file = opened(path)
    assert len(list(file.read())) == 1
    assert file.damage is not None
    assert file.damage["after_step"] is None
