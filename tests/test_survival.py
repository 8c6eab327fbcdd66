"""The training run survives us: every room fails in turn, at every kind of step, and the run ends as without us."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning, session, watches
from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.core import architecture, fitting, instruments, judge, probe, reader
from lightning_gradwatch.core.account import Account
from lightning_gradwatch.core.alerts.detached import DetachedRule
from lightning_gradwatch.core.alerts.nonfinite import NonfiniteRule
from lightning_gradwatch.core.alerts.vanishing import VanishingRule
from lightning_gradwatch.core.clip.clippers import Clippers, ClipWindow
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.figures import LayerFigures
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.inputs import InputFacts
from lightning_gradwatch.core.measure import NormWindow, ParameterMeter
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.shards import Shards
from lightning_gradwatch.core.transfer import Transfer
from lightning_gradwatch.core.updates import UpdateMeter
from lightning_gradwatch.core.window import PublicationWindow
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.tensorboard import Writer
from tests.tasks import Classifier, deep_net, fit

NUM_STEPS = 24
STEPS = {"first": 0, "dense": 3, "alert": 9, "published": 13, "ordinary": 17, "sampled": None, "last": NUM_STEPS}
"""The kinds of steps with one of each, below; the first sampled one behind the dense start is looked up."""
ROOMS: list[tuple[Any, str]] = [
    (fitting, "make_layout"),
    (reader, "log_histograms"),
    (architecture, "survey"),
    (judge, "explain"),
    (instruments, "running_order"),
    (session, "check_batch"),
    (watches, "make_probe"),
    (Clippers, "clip_"),
    (Clippers, "state_dict"),
    (ClipWindow, "add"),
    (Detector, "update"),
    (History, "add"),
    (VanishingRule, "update"),
    (NonfiniteRule, "update"),
    (DetachedRule, "update"),
    (Evidence, "add"),
    (FlightRecorder, "add"),
    (FlightRecorder, "begin_step"),
    (FlightRecorder, "dump"),
    (AlertLog, "record"),
    (InputFacts, "add"),
    (LayerFigures, "norms"),
    (LayerFigures, "weight_norms"),
    (LayerFigures, "zero_fractions"),
    (NormWindow, "push"),
    (ParameterMeter, "nonzeros"),
    (ParameterMeter, "weight_norms"),
    (probe, "norm_of"),
    (probe, "tensors_in"),
    (Probe, "attach"),
    (Probe, "detach"),
    (Account, "norm"),
    (Probe, "sequences"),
    (PublicationWindow, "add"),
    (PublicationWindow, "summary"),
    (Shards, "reduce"),
    (Transfer, "receive"),
    (Transfer, "send"),
    (UpdateMeter, "compare"),
    (UpdateMeter, "moments"),
    (UpdateMeter, "remember"),
    (Writer, "publish"),
    (Writer, "write_alerts"),
    (alerts_file, "append"),
]


class Watched(Classifier):  # type: ignore[misc, valid-type]
    """Saves nothing; knows at which step it is."""

    step = -1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step = batch_idx

    def on_train_end(self) -> None:
        self.step = NUM_STEPS


def model() -> Watched:
    return Watched(deep_net(nn.Sigmoid, 6), optimizer=torch.optim.Adam)


def train(watch: GradWatch | None, net: Watched, directory: Path) -> dict[str, Tensor]:
    fit(watch, net, directory=directory, max_steps=NUM_STEPS, log_every_n_steps=7)
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights at the end, without us."""
    return train(None, model(), tmp_path_factory.mktemp("bare"))


def fail_at(step: int, net: Watched, room: Callable[..., Any]) -> Callable[..., Any]:
    """The room, but it fails from that step on: what is called seldom fails at its next call."""

    def failing(*args: Any, **kwargs: Any) -> Any:
        if net.step >= step:
            raise RuntimeError("this room is broken")
        return room(*args, **kwargs)

    return failing


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize(("place", "name"), ROOMS, ids=lambda value: getattr(value, "__name__", value))
def test_a_room_that_fails_costs_a_warning_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: dict[str, Tensor], place: Any, name: str, kind: str
) -> None:
    watch, net = GradWatch(dense_steps=10, sample_every_n_steps=5, histogram_every=2), model()
    schedule = watch.settings.schedule
    step = STEPS[kind]
    first = next(s for s in range(14, NUM_STEPS) if schedule.is_due(s, 1)) if step is None else step
    monkeypatch.setattr(place, name, fail_at(first, net, getattr(place, name)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = train(watch, net, tmp_path)
    assert all(torch.equal(weights[key], bare[key]) for key in bare)
    if name != "detach":
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    messages = [str(w.message) for w in caught if w.category is GradWatchWarning]
    assert sum("broken" in message for message in messages) <= 1, messages
