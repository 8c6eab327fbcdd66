"""State from a checkpoint: every part of it may be missing, or be anything; the watch goes on with the others."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypedDict

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.records import Alert, Finding
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher

Path = tuple[Any, ...]


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    number: int
    text: str


FINDING = {
    "kind": "dead", "level": "alert", "step": 3, "until_step": None, "layers": ["a"], "value": 1, "threshold": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fit", "unfit"),
    [
        (int, [0, -3], [True, 1.0, "1", None, []]),
        (float, [0.5, 3, math.nan], [True, "0.5", None, torch.ones(1)]),
        (bool, [True], [1, "yes"]),
        (Tensor, [torch.ones(2)], [[1.0], 1.0]),
        (list[float], [[], [1, 2.5]], [["1"], "12", 3, [1, None], {}]),
        (set[str], [["a"], {"b"}], [[1], "ab"]),
        (tuple[str, ...], [["a", "b"], ()], [[1], None]),
        (tuple[int, int], [[1, 2]], [[1], [1, 2, 3], ["a", 2]]),
        (dict[str, list[int]], [{}, {"a": [1]}], [{"a": 1}, {1: [1]}, []]),
        (Literal["a", "b"], ["a"], ["c", 1, ["a"]]),
        (Pair, [[1, "a"]], [[1], ["a", 1], 5]),
        (Options, [{}, {"number": 1, "more": None}], [{"number": "1"}, []]),
        (Finding, [FINDING, {**FINDING, "more": 1}], [{**FINDING, "kind": 3}, {**FINDING, "layers": [1]}, {}, 3]),
    ],
)
def test_a_part_is_taken_if_it_is_of_the_kind_and_otherwise_noted(kind: Any, fit: list[Any], unfit: list[Any]) -> None:
    nothing = object()
    for value in fit:
        saved = Saved({"part": value, "stranger": 1})
        assert saved.take("part", kind, nothing) is not nothing
        assert saved.take("another", kind, nothing) is nothing  # merely new: nothing is said
        assert saved.lost == []
    for value in unfit:
        saved = Saved({"rule": {"part": value}})
        assert saved.part("rule").take("part", kind, nothing) is nothing
        assert saved.lost == ["rule.part"]
        assert saved.part("rule").find("part", kind) is None
        assert saved.lost == ["rule.part"]


def test_what_is_taken_is_made_anew() -> None:
    numbers = [1.0]
    assert Saved({"numbers": numbers}).take("numbers", list[float], []) is not numbers
    finding = Saved({"finding": FINDING}).find("finding", Finding)
    assert finding == Finding("dead", "alert", 3, None, ("a",), 1, 0.5)


def test_alerts_that_cannot_be_read_do_not_take_the_others_with_them() -> None:
    alert = Alert("dead", "alert", 3, None, "a", 1.0, 0.5, "message", remedies=("one",))
    book, saved = AlertLog(), AlertLog()
    saved.record(alert)
    state: dict[str, Any] = saved.state_dict()
    nameless = {**state["alerts"][0], "kind": 7}
    state["alerts"] = [nameless, "garbage", state["alerts"][0], {**state["alerts"][0], "since_a_later_version": 1}]
    book.load_state_dict(state)
    assert (book.alerts, book.num_alerts) == ([alert, alert], 2)


# --- the state of a watcher, with one thing wrong at a time


class Recurrent(nn.Module):
    """A recurrent layer and linear ones, so that every rule has something to remember."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = nn.RNN(4, 8, batch_first=True)
        self.tail = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(8, 8), nn.ReLU())], nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(self.read(x)[0][:, -1])
        return out


def watched(state: Any = None, steps: int = 1) -> Watcher:
    """A watcher that has gone on from a state for some steps, sampled and published."""
    net = Recurrent()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    settings = Settings(Schedule(5, 4), histogram_every=2, policies=make_policies("percentile"))
    watcher = Watcher(net, optimizer, settings)
    if state is not None:
        watcher.load_state_dict(state)
    for step in range(steps):
        watcher.arm()
        optimizer.zero_grad()
        loss = net(torch.linspace(-1, 1, 3 * 12 * 4).view(3, 12, 4) * math.cos(step)).square().mean()
        loss.backward()
        watcher.observe(loss=loss, publish=step % 4 == 1)
        optimizer.step()
    return watcher


@functools.cache
def loaded() -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(watched(steps=27).state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    assert state["steps"]
    return state


def state_of_a_run() -> dict[str, Any]:
    """As a checkpoint holds it, after 27 steps, the last of them not yet read."""
    return copy.deepcopy(loaded())


def paths(part: Any, path: Path = ()) -> Iterator[Path]:
    """Where the parts of a state are, all the way down; of a list the first element."""
    if path:
        yield path
    if isinstance(part, dict):
        for name, value in part.items():
            yield from paths(value, (*path, name))
    elif isinstance(part, list) and part:
        yield from paths(part[0], (*path, 0))


def changed(path: Path, *garbage: Any) -> dict[str, Any]:
    """The state without one part, or with something else in its place."""
    state = state_of_a_run()
    *way, last = path
    holder: Any = state
    for name in way:
        holder = holder[name]
    if garbage:
        holder[last] = copy.deepcopy(garbage[0])
    else:
        del holder[last]
    return state


PATHS = list(paths(state_of_a_run()))
MISSING = object()
GARBAGE: list[Any] = [
    MISSING,
    "garbage",
    None,
    -7,
    10**30,
    math.nan,
    [],
    {"a": 1},
    ["a", None],
    torch.ones(3, 5, dtype=torch.complex64),
]


def goes_on(watcher: Watcher) -> None:
    """It publishes what it has seen, and its own state can be saved and taken back whole."""
    (*_, publication) = watcher.flush().publications
    assert publication.window.last[0] > 0
    again = Saved(watcher.state_dict())
    watched(again, steps=0)
    assert again.lost == []


def test_the_state_that_is_taken_apart_holds_every_rule_and_room() -> None:
    names = {path[0] for path in PATHS} | {path[1] for path in PATHS if path[0] == "detector" and len(path) > 1}
    rules = {"LossHistory", "DepthRule", "TimeRule", "NonfiniteRule", "ExplodingRule", "SilenceRule", "stalled"}
    assert {"rows", "clips", "clip_window", "updates", "latest", "window", "evidence", *rules} <= names
    saved = Saved(state_of_a_run())
    watcher = watched(saved)
    assert (saved.lost, watcher.sampling.num_steps) == ([], 28)
    assert len(PATHS) > 100


NAMES = {".".join(map(str, path)): path for path in PATHS}
NOT_READ = ("evidence.horizons", "evidence.losses", "evidence.first_loss")
"""Copies of what the detector's part holds, for versions that look for them there."""
ROOMS = [name for name in NAMES if name.count(".") <= name.startswith("detector.")]
"""Every room of the watcher and every rule of its detector."""


@pytest.mark.parametrize("name", ROOMS)
def test_a_whole_room_may_be_missing(name: str) -> None:
    saved = Saved(changed(NAMES[name]))
    watcher = watched(saved, steps=3)
    assert saved.lost == []
    assert watcher.sampling.num_steps == (3 if name == "num_steps" else 30)
    goes_on(watcher)


def test_of_any_part_that_is_missing_or_cannot_be_read_the_right_thing_is_said() -> None:
    watcher = watched(steps=0)
    for name, path in NAMES.items():
        missing, garbled = (Saved(state) for state in (changed(path), changed(path, b"garbage")))
        watcher.load_state_dict(missing)
        assert name not in missing.lost
        watcher.load_state_dict(garbled)
        (lost,) = [name] if name.startswith(NOT_READ) else garbled.lost
        assert name.startswith(lost)


@pytest.mark.slow
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda part: "missing" if part is MISSING else str(part))
@pytest.mark.parametrize("name", NAMES)
def test_any_part_may_be_anything(name: str, garbage: Any) -> None:
    """The watch goes on, whatever it may make of numbers that nobody has measured."""
    arguments = () if garbage is MISSING else (garbage,)
    saved = Saved(changed(NAMES[name], *arguments))
    goes_on(watched(saved, steps=3))
    assert len(saved.lost) <= 1
