"""The promises: nothing is changed, nothing is waited for, and the training run always survives."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn

from benchmarks.operators import Operators
from lightning_gradwatch import GradWatch, GradWatchWarning, _places, session, watches
from lightning_gradwatch._lightning import LightningHost
from lightning_gradwatch.core import architecture, fitting, judge, reader
from lightning_gradwatch.core.account import Account
from lightning_gradwatch.core.alerts.detached import DetachedRule
from lightning_gradwatch.core.alerts.nonfinite import NonfiniteRule
from lightning_gradwatch.core.alerts.vanishing import VanishingRule
from lightning_gradwatch.core.clip import NAMES, make_policies
from lightning_gradwatch.core.figures import LayerFigures
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.inputs import InputFacts
from lightning_gradwatch.core.measure import ParameterMeter
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.transfer import Transfer
from lightning_gradwatch.core.updates import UpdateMeter
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.core.window import PublicationWindow
from lightning_gradwatch.outputs import alerts_file, cards
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.tensorboard import Writer
from tests.tasks import (
    Classifier,
    Poison,
    Sponge,
    deep_net,
    digits,
    fit,
    quiet_trainer,
    read_events,
    scalars,
    session_of,
    small_net,
)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}], ids=str
)
def test_weights_are_bit_identical_with_and_without(tmp_path: Path, options: dict[str, Any]) -> None:
    def train(watch: GradWatch | None) -> dict[str, Tensor]:
        model = Classifier(nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 10)))
        fit(watch, model, directory=tmp_path / str(watch is None), max_steps=25, log_every_n_steps=3, **options)
        return {name: value.clone() for name, value in model.state_dict().items()}

    torch.manual_seed(5)
    start = torch.get_rng_state()
    watched = train(GradWatch(histogram_every=1))
    torch.set_rng_state(start)
    bare = train(None)
    assert all(torch.equal(watched[name], bare[name]) for name in bare)


READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero")


def observe(net: nn.Module, watcher: Watcher, publish: bool = False, **options: Any) -> Counter[str]:
    watcher.arm()
    loss = net(torch.ones(4, 64)).square().mean()
    net.zero_grad()
    loss.backward()
    with Operators() as count:
        watcher.observe(loss=loss, publish=publish, **options)
    return count.seen


@pytest.mark.parametrize("depth", [3, 30])
def test_an_ordinary_step_costs_few_operators_and_no_read(depth: int) -> None:
    net = deep_net(nn.ReLU, depth)
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), Settings(Schedule(0, 1000)))
    observe(net, watcher)
    operators = observe(net, watcher)
    assert not any(operators[name] for name in READS)
    views = {"aten::detach", "aten::select", "aten::view"}
    kernels = {name: count for name, count in operators.items() if name not in views}
    row = {"aten::_foreach_norm": 1, "aten::stack": 1}
    alike = {"aten::stack": 3, "aten::linalg_vector_norm": 2, "aten::cat": 1, "aten::index_select": 1}
    assert kernels == (row if depth == 3 else {**row, **alike})  # weights are measured together, and biases


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("on_nonfinite", ["keep", "skip"])
def test_clipping_and_skipping_with_a_fused_optimizer_read_the_coefficient_of_a_cpu_alone(
    policy: str, on_nonfinite: Any
) -> None:
    """On a device nothing is read, see ``test_numbers_that_do_not_exist_are_not_missed``."""
    net = deep_net(nn.ReLU, 30)
    settings = Settings(Schedule(0, 1000), policies=make_policies(policy), on_nonfinite=on_nonfinite)
    watcher = Watcher(net, torch.optim.Adam(net.parameters(), fused=True), settings)
    observe(net, watcher)
    operators = observe(net, watcher)
    of_one_factor = policy not in ("agc", "adagc", "value")
    assert sum(operators[name] for name in READS) == of_one_factor


@pytest.mark.parametrize("publish", [False, True])
def test_a_sampled_or_published_step_reads_nothing_but_its_one_copy(publish: bool) -> None:
    net = deep_net(nn.ReLU, 30)
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), Settings(Schedule(100, 1)))
    observe(net, watcher)

    copies: list[int] = []
    send = watcher._sender._transfer.send

    def counted(label: Any, tensors: Any) -> Any:
        copies.append(sum(t.numel() for t in tensors.values()))
        assert not any(counter.seen[name] for name in READS)  # before the copy, that is on the device
        return send(label, tensors)

    watcher._sender._transfer.send = counted  # type: ignore[method-assign]
    watcher.arm()
    net(torch.ones(4, 64)).square().mean().backward()
    with Operators() as counter:
        watcher.observe(publish=publish)
    assert len(copies) == 1


def test_an_ordinary_step_of_a_trainer_reads_no_number(tmp_path: Path) -> None:
    """Counted inside a real fit, with a loss scaler and gradient accumulation, around each hook of GradWatch."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    reads: list[int] = []

    class Counted(GradWatch):
        def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            with Operators() as count:
                super().on_before_optimizer_step(*args, **kwargs)
            reads.append(sum(count.seen[name] for name in READS))

    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    watch = Counted(dense_steps=1, sample_every_n_steps=1000)
    fit(watch, max_steps=40, plugins=[scaler], accumulate_grad_batches=2, log_every_n_steps=100, directory=tmp_path)
    assert len(reads) == 40
    # the first step is sampled; from then on the norms of every tenth step bring the others home
    assert [step for step, num in enumerate(reads) if num] == [0, 10, 20, 30]


ROOMS = [
    (fitting, "make_layout"),
    (Probe, "attach"),
    (Transfer, "send"),
    (PublicationWindow, "add"),
    (History, "add"),
    (VanishingRule, "update"),
    (NonfiniteRule, "update"),
    (DetachedRule, "update"),
    (watches, "make_probe"),
    (LightningHost, "step"),
    (_places, "log_dir"),
]
OPTIONAL: list[tuple[Any, str, str]] = [
    (session, "check_batch", ""),
    (architecture, "survey", ""),
    (ParameterMeter, "weight_norms", "gradwatch/layers/weight_norm"),
    (LayerFigures, "weight_norms", "gradwatch/layers/weight_norm"),
    (ParameterMeter, "nonzeros", "gradwatch/layers/zero_fraction"),
    (LayerFigures, "zero_fractions", "gradwatch/layers/zero_fraction"),
    (Account, "norm", "gradwatch/layers/output_grad_norm"),
    (Probe, "sequences", ""),
    (UpdateMeter, "__init__", "gradwatch/layers/update_ratio"),
    (UpdateMeter, "remember", "gradwatch/layers/update_ratio"),
    (UpdateMeter, "compare", "gradwatch/layers/update_ratio"),
    (UpdateMeter, "moments", "gradwatch/gradient_signal"),
    (Account, "nonzero_fraction", ""),
    (Probe, "inputs", ""),
    (InputFacts, "add", ""),
    (reader, "log_histograms", "gradwatch/layers/log10_histogram"),
    (LayerFigures, "highest", "gradwatch/layers/clipped_fraction"),
    (Evidence, "add", "gradwatch/layers/update_ratio"),
    (judge, "explain", ""),
]
"""Figures that a watch can do without, and a tag under which they are seen."""
SINKS = [
    (Writer, "publish"), (Writer, "record"), (RunRecorder, "take"), (cards, "roll_up"),
    (alerts_file, "append"), (FlightRecorder, "add"), (FlightRecorder, "dump"),
]  # fmt: skip


def break_(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(place, name, broken)


@pytest.mark.parametrize(("place", "name"), ROOMS, ids=lambda value: getattr(value, "__name__", value))
def test_training_survives_the_failure_of_each_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    break_(monkeypatch, place, name)
    model = Classifier(deep_net(nn.Sigmoid, 6))
    with pytest.warns(GradWatchWarning) as caught:
        trainer = fit(GradWatch(), model, directory=tmp_path, max_steps=15, log_every_n_steps=5)
    assert trainer.global_step == 15
    (warning,) = [w for w in caught if w.category is GradWatchWarning]
    assert "has switched itself off; the training itself is not affected" in str(warning.message)
    assert f"RuntimeError: {name} is broken" in str(warning.message)
    assert not any(module._forward_hooks for module in model.modules())


def optional_run(directory: Path) -> tuple[GradWatch, EventAccumulator]:
    """A network whose gradient vanishes, with moments and clipping."""
    watch = GradWatch(auto_clip=1.0, histogram_every=1)
    model = Classifier(deep_net(nn.Sigmoid, 8), optimizer=torch.optim.Adam, lr=1e-3)
    trainer = fit(watch, model, directory=directory, max_steps=15, log_every_n_steps=3)
    assert trainer.global_step == 15
    return watch, read_events(directory)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    with pytest.warns(GradWatchWarning, match="vanish"):
        return optional_run(tmp_path_factory.mktemp("unbroken"))[1]


@pytest.mark.parametrize("at", [1, 3], ids=["at once", "later"])
@pytest.mark.parametrize(("place", "name", "tag"), OPTIONAL, ids=lambda value: getattr(value, "__name__", value))
def test_an_optional_figure_that_fails_costs_that_figure_alone_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: EventAccumulator,
    place: Any,
    name: str,
    tag: str,
    at: int,
) -> None:
    calls, real = [0], getattr(place, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] >= at:
            raise RuntimeError(f"{name} is\nbroken")
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, broken)
    with pytest.warns(GradWatchWarning) as caught:
        watch, events = optional_run(tmp_path)
    assert not session_of(watch).is_off
    lines = [str(w.message) for w in caught if w.category is GradWatchWarning]
    said = [line for line in lines if "leaves out" in line]
    has_failed = calls[0] >= at
    assert len(said) == has_failed
    assert all(f"from now on, and goes on with the rest (RuntimeError: {name} is)." in line for line in said)
    (alert,), (told,) = watch.alerts, {*lines} - {*said}
    assert (alert.kind, alert.step) == ("vanishing", 9)
    assert told.startswith("GradWatch, vanishing: Gradients vanish with depth, since step 9, in net.0\n")
    assert all(part[1:] in told for part in (alert.summary, alert.evidence, *alert.remedies))
    norms, expected = (scalars(e, "gradwatch/total_norm") for e in (events, unbroken))
    assert norms == expected
    shown, all_tags = ({*e.Tags()["scalars"], *e.Tags()["tensors"]} for e in (events, unbroken))
    assert not tag or tag in all_tags
    if tag in shown and tag in events.Tags()["tensors"] and has_failed:
        newest = events.Tensors(tag)[-1]
        is_absent = newest.step < 14 or (make_ndarray(newest.tensor_proto) == -1).all()
        assert is_absent or name in ("compare", "remember", "add")  # of these the latest that was seen
    of_evidence = {"gradwatch/gradient_signal", "gradwatch/update_ratio", "gradwatch/weight_drift"}
    assert all_tags - shown <= {tag, "gradwatch/layers/nonfinite_fraction", *of_evidence}


@pytest.mark.parametrize(("place", "name"), SINKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_sink_that_fails_is_named_once_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    break_(monkeypatch, place, name)
    watch = GradWatch()
    with pytest.warns(GradWatchWarning) as caught:
        fit(watch, Classifier(deep_net()), directory=tmp_path, max_steps=15, log_every_n_steps=2)
    messages = [str(w.message) for w in caught]
    assert sum(f"{name} is broken" in m for m in messages) == 1
    assert any("Gradients vanish" in m for m in messages)
    assert [a.kind for a in watch.alerts] == ["vanishing"]


@pytest.mark.parametrize("obstacle", ["read-only", "full"])
def test_a_disk_that_takes_no_more_costs_one_warning(tmp_path: Path, obstacle: str) -> None:
    if obstacle == "full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full, a device that is always full")
        (tmp_path / "alerts.jsonl").symlink_to("/dev/full")
    else:
        (tmp_path / "alerts.jsonl").mkdir()  # not even root can write a line into a directory
    watch = GradWatch()
    with pytest.warns(GradWatchWarning) as caught:
        trainer = fit(watch, Classifier(deep_net()), directory=tmp_path, max_steps=15)
    assert trainer.global_step == 15
    assert sum("the alerts file cannot be written" in str(w.message) for w in caught) == 1
    assert len(watch.alerts) == 1


def test_where_warnings_are_errors_an_alert_is_logged_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    watch = GradWatch()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "lightning_gradwatch"):
        warnings.simplefilter("error", GradWatchWarning)
        trainer = fit(watch, Classifier(deep_net()), max_steps=15)
    assert trainer.global_step == 15
    assert "Gradients vanish" in caplog.text


def test_an_alert_that_comes_and_goes_does_not_flood_the_console() -> None:
    watch = GradWatch()
    steps = tuple(range(0, 600, 25))
    model = Classifier(small_net())
    with pytest.warns(GradWatchWarning) as caught:
        quiet_trainer(watch, Poison(*steps), Sponge(), max_steps=600).fit(model, digits())
    assert len(watch.alerts) == len(steps)
    assert len(caught) <= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits_for_the_device() -> None:
    net = deep_net(nn.ReLU, 10).cuda()
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), 0.1), Settings(Schedule(5, 10)))
    x = torch.ones(4, 64, device="cuda")
    for step in range(60):
        watcher.arm()
        net.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        is_ordinary = step > 0 and not watcher.is_due()
        torch.cuda.set_sync_debug_mode("error" if is_ordinary else "default")
        try:
            watcher.observe(loss=loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert watcher._optional.absent == set()  # what waits may have cost a figure alone
    (publication,) = watcher.flush().publications
    assert publication.window.num_steps == 60


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets torch's default, until the test is over."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("policy", NAMES)
def test_another_default_dtype_changes_nothing(policy: str, default_dtype: Callable[[torch.dtype], None]) -> None:
    numbers = {}
    for dtype in (torch.float32, torch.float64):
        net = deep_net(nn.ReLU, 8)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        inputs, seen = torch.ones(4, 64), []
        default_dtype(dtype)
        watcher = Watcher(net, optimizer, Settings(Schedule(2, 3), policies=make_policies(policy)))
        for step in range(12):
            watcher.arm()
            loss = net(inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for observation in watcher.observe(loss=loss, publish=step % 4 == 3).observations:
                seen += [t for t in (observation.norms, observation.clips, observation.histogram) if t is not None]
            optimizer.step()
        default_dtype(torch.float32)
        numbers[dtype] = seen
    usual, unusual = numbers.values()
    assert len(usual) >= 10
    assert all(number.dtype == torch.float32 for number in unusual)
    assert all(torch.equal(a.nan_to_num(-2), b.nan_to_num(-2)) for a, b in zip(usual, unusual, strict=True))
