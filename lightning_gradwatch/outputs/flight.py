"""The flight recorder: the last steps of a run, kept in memory and written to a file when something happens.

The file ``flight-<step>.jsonl.gz`` needs nothing but Python: ``[json.loads(line) for line in gzip.open(file, "rt")]``.
Its first line says what the run was and why it was written, every further one is a step, the oldest first. Numbers that
JSON does not know are the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which ``float`` reads; null is "not known".
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import MISSING, Alert, Layer, Observation
from lightning_gradwatch.outputs.worker import Worker
from lightning_gradwatch.paths import Place, at
from lightning_gradwatch.remote import RemotePath

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
MAX_FILES = 10
"""Files kept in a run's directory: the first ones, which saw the trouble begin, and the newest."""
MAX_WAITING = 4
"""Files that may wait for a slow network."""
MAX_EPOCHS = 16
"""Epochs of which the random state at the start is remembered, the newest ones."""
MAX_ALERTS = 50
"""Alerts that a file tells of, the newest ones."""
PATTERN = "flight-*.jsonl.gz"
_UNFINISHED = ".flight.unfinished"
_DIGITS = 6


@dataclass
class _Facts:
    """What the host knows of a step when it is taken."""

    step: int
    epoch: int
    batch_idx: int
    lrs: list[float | None]
    loss_scale: Tensor | None


@dataclass
class _Row:
    """A step whose numbers have arrived from the device."""

    step: int
    facts: _Facts | None
    layers: tuple[Layer, ...]
    norms: Tensor
    loss: float | None
    bad_inputs: bool | None
    clips: Tensor | None


@dataclass
class _Track:
    """The steps of one optimizer: those that have arrived, and those whose numbers are still on the device."""

    rows: deque[_Row]
    coming: deque[_Facts] = field(default_factory=deque)


class _LineOfHost(TypedDict):
    """What the host knew of a step, as it is written; an ``object`` is a number as JSON has it."""

    step: int
    optimizer: str
    epoch: int | None
    batch_idx: int | None
    lr: object
    loss_scale: object


class _Line(_LineOfHost, total=False):
    """The same with what has arrived from the device, if it has."""

    layers: list[str]
    loss: object
    bad_inputs: bool | None
    total_norm: object
    norms: list[object]
    clips: list[dict[str, object]]


class FlightRecorder:
    """Remembers the last steps of every optimizer, from numbers that come to the host anyway.

    Args:
        directory: Where the files go, also a URL: to there they go from a thread, which nobody waits for.
        num_steps: Number of steps that are remembered.
        about: What is written into every file's first line: the run, its seed, how batches are drawn.
    """

    def __init__(self, directory: str | Path, num_steps: int, about: Mapping[str, object]) -> None:
        self._directory = at(directory)
        self._worker = Worker(MAX_WAITING)
        self._num_steps = num_steps
        self._about = dict(about)
        self._tracks: dict[str, _Track] = {}
        self._epochs: dict[int, bytes] = {}
        self._is_writing = False
        self._next_dump = 0
        self._is_owed = False
        self._kinds: set[str] = set()

    def describe(self, **facts: object) -> None:
        """Add to what is written into every file's first line."""
        self._about.update(facts)

    def begin_epoch(self, epoch: int, rng_state: bytes) -> None:
        """Remember torch's random state at the beginning of an epoch, from which its order of batches follows."""
        self._epochs[epoch] = rng_state
        if len(self._epochs) > MAX_EPOCHS:
            del self._epochs[next(iter(self._epochs))]

    def begin_step(
        self,
        optimizer: str,
        step: int,
        epoch: int,
        batch_idx: int,
        param_groups: Iterable[Mapping[str, object]],
        loss_scale: Tensor | None = None,
    ) -> None:
        """Remember what the host knows of a step; its numbers come later. No host sync.

        Args:
            optimizer: Name of the optimizer; ``""`` if there is only one.
            step: The step, on the x-axis of the loggers.
            epoch: The epoch, from 0.
            batch_idx: Number of the batch in its epoch, from 0; under accumulation the last one of the step.
            param_groups: The optimizer's, for their learning rates.
            loss_scale: The loss scaler's factor, on its device, shape ``()``; None without one.
        """
        lrs: list[float | None] = []
        for group in param_groups:  # ordinary steps are counted in calls
            lr = group.get("lr")
            lrs.append(lr if isinstance(lr, (int, float)) else None)
        scale = None if loss_scale is None else loss_scale.clone()
        track = self._tracks.get(optimizer) or self._track(optimizer)
        track.coming.append(_Facts(step, epoch, batch_idx, lrs, scale))

    def add(self, observation: Observation) -> None:
        """Take in the numbers of steps that have arrived on the host."""
        track = self._track(observation.optimizer)
        first = max(len(observation.steps) - self._num_steps, 0)
        norms = observation.norms[first:].clone()  # not the whole observation: it may be large
        clips = None if observation.clips is None else observation.clips[first:].clone()
        for place, step in enumerate(observation.steps[first:]):
            while track.coming and track.coming[0].step < step:
                track.coming.popleft()
            facts = track.coming.popleft() if track.coming and track.coming[0].step == step else None
            loss, bad = observation.losses[first + place], observation.bad_inputs[first + place]
            clip = None if clips is None else clips[place]
            track.rows.append(_Row(step, facts, observation.layers, norms[place], loss, bad, clip))

    def alert(self, alerts: Sequence[Alert], known: Iterable[Alert]) -> None:
        """Write a file if alerts have opened, unless one of the same kind has just been written.

        What is put off is written once the recorder holds other steps than in the last file, or at the end.

        Args:
            alerts: Those that have just opened.
            known: Those of the run, for the first line.
        """
        self._is_owed |= bool(alerts)
        step = max((alert.step for alert in alerts), default=self._last_step())
        is_new = not {alert.kind for alert in alerts} <= self._kinds
        if self._is_owed and (is_new or step >= self._next_dump):
            self._kinds.update(alert.kind for alert in alerts)
            self.dump("alert", known)

    def dump(self, reason: str, alerts: Iterable[Alert] = (), may_wait: bool = True) -> Place | None:
        """Write what is remembered, in one go: a reader sees the whole file or none.

        Args:
            reason: Why: ``"alert"``, ``"end"``, the name of a signal or of an exception.
            alerts: The alerts of the run.
            may_wait: Whether the device may be waited for: not when a signal came because it hangs.

        Returns:
            The file; None if there is nothing to write, or a file is just being written.

        Raises:
            OSError: If it cannot be written.
        """
        if self._is_writing or not any(track.rows or track.coming for track in self._tracks.values()):
            return None
        self._is_writing = True
        try:
            return self._write(reason, alerts, may_wait)
        finally:
            self._is_writing = False

    def settle(self, seconds: float) -> None:
        """Wait until files that go to a URL are there, but not for ever.

        Raises:
            OSError: If they cannot be written, or it takes longer.
        """
        self._worker.settle(seconds)

    def close(self) -> None:
        """Let the thread end, if there is one."""
        self._worker.close()

    def _write(self, reason: str, alerts: Iterable[Alert], may_wait: bool) -> Place:
        step = self._last_step()
        self._next_dump, self._is_owed = step + self._num_steps, False
        name = f"flight-{step}.jsonl.gz"
        if isinstance(self._directory, RemotePath):
            content = io.BytesIO()
            self._encode(content, reason, alerts, may_wait)
            self._worker.submit(functools.partial(_upload, self._directory / name, content.getvalue()))
            return self._directory / name
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished, path = self._directory / _UNFINISHED, self._directory / name
        with unfinished.open("wb") as file:
            self._encode(file, reason, alerts, may_wait)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _forget_files(sorted(self._directory.glob(PATTERN), key=lambda path: path.stat().st_mtime_ns))
        return path

    def _encode(self, file: IO[bytes], reason: str, alerts: Iterable[Alert], may_wait: bool) -> None:
        with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as text:
            for line in [_finite(self._first_line(reason, alerts)), *self._lines(may_wait)]:
                text.write(json.dumps(line, default=_not_known) + "\n")

    def _track(self, optimizer: str) -> _Track:
        if optimizer not in self._tracks:
            self._tracks[optimizer] = _Track(deque(maxlen=self._num_steps), deque(maxlen=self._num_steps))
        return self._tracks[optimizer]

    def _last_step(self) -> int:
        return max(map(_newest_step, self._tracks.values()), default=0)

    def _first_line(self, reason: str, alerts: Iterable[Alert]) -> dict[str, object]:
        layers = {
            name: [layer.name for layer in track.rows[-1].layers] for name, track in self._tracks.items() if track.rows
        }
        epochs = {epoch: state.hex() for epoch, state in self._epochs.items()}
        newest = list(alerts)[-MAX_ALERTS:]
        told = [{name: _plain(value) for name, value in asdict(alert).items()} for alert in newest]
        return {
            "schema": SCHEMA_VERSION, "reason": reason, "step": self._last_step(), **self._about,
            "layers": layers, "rng_state_at_epoch_start": epochs, "alerts": told,
        }  # fmt: skip

    def _lines(self, may_wait: bool) -> Iterator[_Line]:
        lines = [
            line
            for name, track in self._tracks.items()
            for line in (
                *(_arrived(name, row, track.rows[-1].layers, may_wait) for row in list(track.rows)),
                *(_line(name, facts.step, facts, may_wait) for facts in list(track.coming)),
            )
        ]
        yield from sorted(lines, key=lambda line: line["step"])


def _upload(path: RemotePath, content: bytes) -> None:
    """Write a file to a URL, where clocks cannot be trusted to tell which others are older."""
    path.write_bytes(content)
    others = [other for other in files(path.parent) if other.name != path.name]
    _forget_files([*others, path])


def _forget_files(paths: Sequence[Place]) -> None:
    """Keep the first ones and the newest.

    Args:
        paths: All files, the oldest first.
    """
    for path in paths[MAX_FILES // 2 : max(len(paths) - MAX_FILES // 2, 0)]:
        path.unlink()


def _newest_step(track: _Track) -> int:
    newest: list[_Row | _Facts] = [*list(track.rows)[-1:], *list(track.coming)[-1:]]
    return max((one.step for one in newest), default=0)


def _line(optimizer: str, step: int, facts: _Facts | None, may_wait: bool) -> _Line:
    """What the host knew of a step."""
    scale = facts.loss_scale if facts is not None else None
    return {
        "step": step,
        "optimizer": optimizer,
        "epoch": None if facts is None else facts.epoch,
        "batch_idx": None if facts is None else facts.batch_idx,
        "lr": None if facts is None else _finite(facts.lrs),
        "loss_scale": None if scale is None or not may_wait else _plain(float(scale)),
    }


def _arrived(optimizer: str, row: _Row, newest: tuple[Layer, ...], may_wait: bool) -> _Line:
    """What is known of a step whose numbers have arrived; layers of its own where these have changed since."""
    total, *norms = row.norms.tolist()
    line = _line(optimizer, row.step, row.facts, may_wait)
    if row.layers != newest:
        line["layers"] = [layer.name for layer in row.layers]
    line["loss"] = _plain(row.loss)
    line["bad_inputs"] = row.bad_inputs
    line["total_norm"] = _norm(total)
    line["norms"] = [_norm(norm) for norm in norms]
    if row.clips is not None:
        line["clips"] = [_clip(facts) for facts in row.clips.view(-1, 3).tolist()]
    return line


def _clip(facts: Sequence[float]) -> dict[str, object]:
    threshold, coefficient, clipped_norm = facts
    return {
        "threshold": None if math.isnan(threshold) else _plain(threshold),
        "coefficient": _plain(coefficient),
        "clipped_norm": _plain(clipped_norm),
    }


def _norm(value: float) -> object:
    return None if value == MISSING else _plain(value)


def _plain(value: object) -> object:
    """A number as JSON knows it, with six digits."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(float(value))


def _finite(value: object) -> object:
    """The same, with strings for the numbers that JSON does not know, however deep."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _not_known(_: object) -> None:
    """What JSON cannot hold, such as somebody's own kind of batch size, does not cost the record."""


def read(path: str | Path | RemotePath) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of a flight record, and its steps.

    Raises:
        OSError: If it cannot be read.
    """
    with gzip.open(io.BytesIO(at(path).read_bytes()), "rt", encoding="utf-8") as file:
        first, *steps = [json.loads(line) for line in file]
    return first, steps


def files(directory: str | Path | RemotePath) -> list[Place]:
    """The flight records of a run, the oldest first."""
    try:
        paths: list[Place] = list(at(directory).glob(PATTERN))
    except (OSError, ValueError) as failure:  # there can be no such directory, or it is out of reach
        if is_the_users(failure):
            raise
        return []
    found: dict[int, Place] = {}
    for path in paths:
        with contextlib.suppress(ValueError):
            found[int(path.name.removeprefix("flight-").removesuffix(".jsonl.gz"))] = path
    return [found[step] for step in sorted(found)]
