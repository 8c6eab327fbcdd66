"""Paths and URLs: what one can do, the other can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_gradwatch.paths import Place, append_lines, at, writing
from lightning_gradwatch.reading.listing import folders
from lightning_gradwatch.remote import RemoteError, RemotePath
from tests.stores import Objects, broken, clear


@pytest.fixture(autouse=True)
def _empty_stores() -> Iterator[None]:
    clear()
    yield
    clear()


@pytest.fixture(params=["disk", "file", "memory", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A directory that does not exist yet, on a disk, or at a URL."""
    roots = {"disk": f"{tmp_path}", "file": f"file://{tmp_path}", "memory": "memory://", "objects": "objects://bucket"}
    return at(roots[str(request.param)]) / "logs"


def test_what_has_no_scheme_is_a_path_and_anything_else_a_url(tmp_path: Path) -> None:
    assert at("logs/s3:/run") == Path("logs/s3:/run")
    assert at(tmp_path) == tmp_path
    assert isinstance(at("s3://bucket/run"), RemotePath)
    assert at(url := at("s3://bucket/run")) is url


@pytest.mark.parametrize(
    ("url", "name", "parent", "child"),
    [
        ("s3://bucket/a/b", "b", "s3://bucket/a", "s3://bucket/a/b/x/y"),
        ("s3://bucket/a/", "a", "s3://bucket", "s3://bucket/a/x/y"),
        ("s3://bucket", "bucket", "s3://", "s3://bucket/x/y"),
        ("memory://", "", "memory://", "memory://x/y"),
        ("memory:///a", "a", "memory:///", "memory:///a/x/y"),
        ("file:///", "", "file:///", "file:///x/y"),
        ("simplecache::s3://bucket/a", "a", "simplecache::s3://bucket", "simplecache::s3://bucket/a/x/y"),
    ],
)
def test_parts_of_a_url(url: str, name: str, parent: str, child: str) -> None:
    place = at(url)
    assert (place.name, str(place.parent), str(place / "x" / "y"), str(place / "x/y")) == (name, parent, child, child)
    assert str(place / ".") == str(place.resolve()) == str(place)
    assert str((place / "x").with_name("y")) == str(place / "y")


def test_files_are_written_read_listed_and_renamed_alike(place: Place) -> None:
    assert not place.exists()
    assert list(folders(str(place))) == []
    with writing(place / "a" / "one.txt") as file:
        file.write(b"first")
    with writing(place / "two.txt") as file:
        file.write(b"second\n")
    assert (place / "a" / "one.txt").read_bytes() == b"first"
    assert (place.is_dir(), place.is_file(), (place / "two.txt").is_file(), (place / "two.txt").is_dir()) == (
        True, False, True, False,
    )  # fmt: skip
    found = {folder.name: sorted(folder.files) for folder in folders(str(place))}
    assert found == {".": ["two.txt"], "a": ["one.txt"]}
    assert sorted(path.name for path in place.iterdir()) == ["a", "two.txt"]
    assert [path.name for path in place.glob("t*.txt")] == ["two.txt"]
    before = (place / "two.txt").stat()
    append_lines(place / "two.txt", b"third\n")
    append_lines(place / "a" / "one.txt", b"fourth\n")
    after = (place / "two.txt").stat()
    assert (place / "two.txt").read_bytes() == b"second\nthird\n"
    assert (place / "a" / "one.txt").read_bytes() == b"first\nfourth\n"  # a torn line is ended
    assert (before.st_size, after.st_size) == (7, 13)
    assert after.st_mtime >= before.st_mtime > 1.7e9
    file_moved, target = place / "two.txt", place / "three.txt"
    file_moved.replace(target)  # type: ignore[arg-type]
    assert (file_moved.exists(), target.read_bytes()) == (False, b"second\nthird\n")
    target.unlink()
    for missing in (target, place / "nowhere"):
        assert not missing.exists()
        with pytest.raises(FileNotFoundError):
            missing.read_bytes()
        with pytest.raises(FileNotFoundError):
            missing.stat()


def test_a_file_that_is_written_anew_is_another_one() -> None:
    path = at("memory://logs/file")
    path.write_bytes(b"12345")
    before = path.stat()
    path.write_bytes(b"67890")
    assert (before.st_size, before) != (5, path.stat())


@pytest.mark.parametrize(
    ("failure", "is_final"),
    [(OSError("down"), False), (PermissionError("no"), True), (KeyError("odd"), False), (ValueError("bad"), True)],
)
def test_what_goes_wrong_at_a_url_is_told_in_one_voice(failure: Exception, is_final: bool) -> None:
    path = at("objects://bucket/file")
    with broken(Objects, failure):
        for attempt in (path.exists, path.read_bytes, path.stat, lambda: path.write_bytes(b"")):
            with pytest.raises(RemoteError, match=r"objects://bucket/file") as caught:
                attempt()
            assert caught.value.is_final is is_final
            assert caught.value.__cause__ is failure


def test_a_file_system_that_is_not_there_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RemoteError, match="Install s3fs to access S3") as caught:
        at("s3://bucket/run").exists()
    assert caught.value.is_final
    with pytest.raises(RemoteError, match="Protocol not known: nonsense"):
        at("nonsense://run").exists()
