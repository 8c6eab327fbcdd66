"""Checkpoint and resume: what a resumed run publishes and says must be what the uninterrupted one did."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core import sending
from lightning_gradwatch.core.quantities.several import STEPS as RECORDED
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.transfer import Transfer
from lightning_gradwatch.outputs import alerts_file
from tests.setups.published import Numbers, numbers, same
from tests.tasks import deep_net, digits, make_classifier_class, read_events, scalars, session_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")]

STEPS = 60
EVERY = 5
"""Steps between two publications."""
BATCHES = list(digits())
NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]
SLOW = ("gradwatch/layers/weight_norm", "gradwatch/layers/zero_fraction")
"""Measured every ten steps or so: for new names anew, and for the old ones perhaps some steps ago."""
UPDATES = ("gradwatch/update_ratio", "gradwatch/gradient_signal", "gradwatch/layers/update_ratio")


def replayed(namespace: str) -> Any:
    class Replayed(make_classifier_class(importlib.import_module(namespace))):  # type: ignore[misc]
        """Takes its batch by the number of the step, as a data loader that can be resumed would hand it out.

        The gradient of its layer 2 is poisoned at some steps, until GradWatch has seen it.
        """

        poisoned: tuple[int, ...] = (33, 34)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(BATCHES[self.global_step % len(BATCHES)], batch_idx)
            return loss

        def on_after_backward(self) -> None:
            if self.global_step in self.poisoned:
                self.net[2].weight.grad.view(-1)[0] = torch.nan

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad.nan_to_num_()

    return Replayed


def sick_model(namespace: str = NAMESPACES[0]) -> Any:
    """Its gradient vanishes."""
    return replayed(namespace)(deep_net(nn.Sigmoid, depth=12), lr=0.01)


def calm_model() -> Any:
    """The same without the poison."""
    model = sick_model()
    model.poisoned = ()
    return model


@dataclass
class Run:
    """What is left of a run."""

    trainer: Any
    watch: GradWatch | None
    model: Any
    directory: Path
    warnings: list[str]

    @property
    def alerts(self) -> list[Alert]:
        assert self.watch is not None
        return self.watch.alerts

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What the lines of ``alerts.jsonl`` tell, but for when, in which run, and what is repeated in another file."""
        told = [line for line in alerts_file.read(self.directory) if line["event"] != "continued"]
        return [{name: value for name, value in line.items() if name not in ("time", "run")} for line in told]

    @property
    def numbers(self) -> Numbers:
        return numbers(self.directory)

    @property
    def last_step(self) -> int:
        """The last step that Lightning has logged."""
        events = read_events(self.directory)
        return max(scalars(events, "loss")) if "loss" in events.Tags()["scalars"] else -1

    def checkpoint(self, step: int) -> Path:
        return self.directory / "checkpoints" / f"step={step}.ckpt"


def train(
    directory: Path,
    watch: GradWatch | None = None,
    model: Any = None,
    resume: Path | None = None,
    steps: int = STEPS,
    namespace: str = NAMESPACES[0],
    callbacks: tuple[Any, ...] = (),
) -> Run:
    """Train the sick model, unless told otherwise, with a checkpoint after every step."""
    pl: Any = importlib.import_module(namespace)
    save = pl.callbacks.ModelCheckpoint(
        directory / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}"
    )
    trainer = pl.Trainer(
        callbacks=[*callbacks, *([watch] if watch else []), save],
        logger=pl.loggers.TensorBoardLogger(directory, name="", version=""),
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = sick_model(namespace) if model is None else model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradWatchWarning)
        trainer.fit(model, digits(), ckpt_path=resume)
    return Run(trainer, watch, model, directory, [str(w.message) for w in caught])


def resume(directory: Path, checkpoint: Path, **options: Any) -> Run:
    run = train(directory, **{"watch": GradWatch(log_every_n_steps=EVERY), "resume": checkpoint, **options})
    if run.last_step not in (-1, options.get("steps", STEPS) - 1):
        pytest.skip("this Lightning resumes its own x-axis one step short")
    return run


def later(found: Numbers, step: int, without: tuple[str, ...] = UPDATES) -> Numbers:
    return {(tag, at): number for (tag, at), number in found.items() if at >= step and tag not in without}


def resumed(run: Run, at: int, without: tuple[str, ...] = UPDATES) -> Numbers:
    """What a resumed run has published; its record begins with the steps that had not been written."""
    found = later(run.numbers, 0, without)
    assert all(step >= at for tag, step in found if not tag.endswith(RECORDED))
    assert all(step >= at - 10 for _, step in found)
    return later(found, at, ())


def opened(run: Run) -> list[str]:
    return [line["kind"] for line in run.lines if line["event"] == "opened"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run, with two alerts."""
    run = train(tmp_path_factory.mktemp("whole"), GradWatch(log_every_n_steps=EVERY))
    assert [(a.kind, a.step, a.until_step) for a in run.alerts] == [("vanishing", 9, None), ("nonfinite", 33, 34)]
    assert [line["event"] for line in run.lines] == ["opened", "opened", "ended"]
    assert len(run.warnings) == 2
    return run


WHERE = {
    3: "in the dense start",
    5: "right after a publication",
    9: "before the alert opens",
    10: "after the alert has opened",
    24: "between two samples",
    28: "at the end of an epoch",
    34: "before a bad step is read",
    36: "in the middle of an incident",
    47: "before an incident ends",
}


FOUND = {"vanishing": 9, "nonfinite": 34}
"""The steps at which the alerts are found: at a sample, and at the publication after the first bad step."""


@pytest.mark.parametrize("at", WHERE, ids=lambda at: WHERE[at])
def test_a_resumed_run_goes_on_as_if_never_interrupted(tmp_path: Path, whole: Run, at: int) -> None:
    run = resume(tmp_path, whole.checkpoint(at))
    assert run.alerts == whole.alerts
    assert same(resumed(run, at), later(whole.numbers, at))
    assert run.watch is not None
    assert whole.watch is not None
    assert run.watch.profile == whole.watch.profile
    assert run.lines == [line for line in whole.lines if line["event"] == "ended" or FOUND[line["kind"]] >= at]
    assert len(run.warnings) == len(opened(run))


@pytest.mark.parametrize("at", [3, 10])
def test_the_size_of_the_updates_is_not_forgotten(tmp_path: Path, whole: Run, at: int) -> None:
    run = resume(tmp_path, whole.checkpoint(at))
    assert same(resumed(run, at, ()), later(whole.numbers, at, ()))


@pytest.mark.parametrize("at", [24, 61])
def test_an_alert_that_rests_on_the_updates_is_not_missed(tmp_path: Path, at: int) -> None:
    def model() -> Any:
        return replayed(NAMESPACES[0])(deep_net(nn.Tanh, depth=3), lr=1e-9)

    first = train(tmp_path / "whole", GradWatch(), model(), steps=80)
    assert [alert.kind for alert in first.alerts] == ["nonfinite", "stalled"]
    assert resume(tmp_path / "resumed", first.checkpoint(at), model=model(), steps=80).alerts == first.alerts


@pytest.mark.parametrize(("first", "second"), [NAMESPACES, NAMESPACES[1:] * 2, NAMESPACES[::-1]])
def test_the_namespaces_resume_their_own_checkpoints_and_each_others(
    tmp_path: Path, whole: Run, first: str, second: str
) -> None:
    watch = GradWatch(log_every_n_steps=EVERY)
    checkpoint = train(tmp_path / first, watch, steps=24, namespace=first).checkpoint(24)
    run = resume(tmp_path / f"{second} again", checkpoint, namespace=second)
    assert run.alerts == whole.alerts
    assert same(resumed(run, 24), later(whole.numbers, 24))


class Late(Transfer[Any]):
    """Copies that arrive when the next one is sent, as on a CUDA device."""

    _held: list[Any] = []

    def send(self, label: Any, tensors: Any) -> Any:
        held, self._held = self._held, []
        self._held = super().send(label, tensors)
        return held

    def receive(self) -> Any:
        held, self._held = self._held, []
        return held + super().receive()


@pytest.mark.parametrize("at", [10, 35, 55])
def test_an_alert_that_is_under_way_to_the_host_is_not_lost(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(sending, "Transfer", Late)
    first = train(tmp_path / "first", GradWatch(log_every_n_steps=EVERY), steps=at)
    run = resume(tmp_path / "second", first.checkpoint(at))
    assert run.alerts == whole.alerts
    known = torch.load(first.checkpoint(at), weights_only=True)["callbacks"]["GradWatch"]["alerts"]
    assert len(known) + len(opened(run)) == 2
    assert run.trainer.callback_metrics["gradwatch/alerts"] == 2.0


def test_the_state_is_made_of_tensors_and_primitives(whole: Run) -> None:
    for at in WHERE:
        callbacks = torch.load(whole.checkpoint(at), weights_only=True)["callbacks"]
        assert callbacks["GradWatch"]["watchers"][""]["num_steps"] == at


@pytest.mark.parametrize("at", [5, 10, 34])
def test_in_the_same_directory_nothing_is_said_twice(tmp_path: Path, whole: Run, at: int) -> None:
    """Not even what was said between the checkpoint and the crash."""
    crashed = train(tmp_path, GradWatch(log_every_n_steps=EVERY), steps=40)
    assert (opened(crashed), len(crashed.warnings)) == (["vanishing", "nonfinite"], 2)
    run = resume(tmp_path, crashed.checkpoint(at))
    assert run.warnings == []
    assert run.lines == whole.lines
    assert run.alerts == whole.alerts


def test_another_run_in_the_same_directory_says_it_again(tmp_path: Path) -> None:
    for times in (1, 2):
        run = train(tmp_path, GradWatch(), steps=12)
        assert len(run.warnings) == 1
        assert opened(run) == ["vanishing"] * times


def test_a_file_of_alerts_that_cannot_be_read_is_no_reason_to_stop(tmp_path: Path, whole: Run) -> None:
    (tmp_path / "alerts.jsonl").write_text('{"event": "opened"\n[]\n\n7\n{"event": "opened", "kind": "dead"}\n')
    run = train(tmp_path, GradWatch(log_every_n_steps=EVERY), resume=whole.checkpoint(24))
    assert run.alerts == whole.alerts
    assert len(run.warnings) == 1


def test_a_watch_may_join_a_run_that_is_resumed(tmp_path: Path, whole: Run) -> None:
    """It starts where it joins: its first alert comes ten samples later, its numbers are those of the steps."""
    bare = train(tmp_path / "bare", steps=24)
    run = resume(tmp_path / "joined", bare.checkpoint(24))
    for tag in ("gradwatch/total_norm", "grad_norm/net.0", "grad_norm/net.22"):
        expected = {step: norm for step, norm in scalars(read_events(whole.directory), tag).items() if step >= 24}
        assert scalars(read_events(run.directory), tag) == pytest.approx(expected, rel=0, nan_ok=True)
    assert {(a.kind, a.step) for a in run.alerts} == {("vanishing", 33), ("nonfinite", 33)}


def test_a_watch_that_joins_late_reads_adams_moments_rightly(tmp_path: Path) -> None:
    def model() -> Any:
        return replayed(NAMESPACES[0])(deep_net(nn.Tanh, depth=3), lr=1e-3, optimizer=torch.optim.Adam)

    def signal(run: Run) -> dict[int, float]:
        return scalars(read_events(run.directory), "gradwatch/gradient_signal")

    def dense() -> GradWatch:
        return GradWatch(dense_steps=99, log_every_n_steps=1)

    whole = train(tmp_path / "whole", dense(), model(), steps=50)
    bare = train(tmp_path / "bare", None, model(), steps=20)
    joined = resume(tmp_path / "joined", bare.checkpoint(20), watch=dense(), model=model(), steps=50)
    assert signal(joined)[49] == pytest.approx(signal(whole)[49], rel=1e-4)


@pytest.mark.filterwarnings("always:.*add the following callbacks.*")
def test_a_watch_may_leave_a_run_that_is_resumed(tmp_path: Path, whole: Run) -> None:
    run = train(tmp_path, resume=whole.checkpoint(24))
    assert "add the following callbacks: ['GradWatch']" in run.warnings[0]
    assert run.lines == []
    weights = zip(run.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


class Oracle(importlib.import_module(NAMESPACES[0]).Callback):  # type: ignore[misc]
    """Norms as torch has them, by step: the total, and of each layer."""

    def __init__(self) -> None:
        self.totals: dict[int, float] = {}
        self.layers: dict[str, dict[int, float]] = defaultdict(dict)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step, norm = trainer.global_step, torch.nn.utils.get_total_norm
        self.totals[step] = norm([p.grad for p in pl_module.parameters()]).item()
        for name, layer in pl_module.named_modules():
            if isinstance(layer, nn.Linear):
                self.layers[name][step] = norm([p.grad for p in layer.parameters() if p.grad is not None]).item()


CHANGES: dict[str, dict[str, Any]] = {
    "fewer layers": {"include": ["net.0", "net.2"]},
    "as many, but other layers": {"exclude": ["net.4"]},
    "another cadence": {"log_every_n_steps": 7},
    "other samples": {"dense_steps": 0, "sample_every_n_steps": 3},
    "every backward pass": {"sample_at": "backward"},
    "rows and histograms": {"group_by": 1, "histogram_every": 0},
}


@pytest.mark.parametrize("change", CHANGES)
def test_arguments_may_change_at_a_resume(tmp_path: Path, change: str) -> None:
    """What is published after that is right: of the steps since the last point, of the layers that are chosen now."""
    before: dict[str, Any] = {"log_every_n_steps": EVERY, "exclude": "net.2" if "other layers" in change else None}
    oracle, watch = Oracle(), GradWatch(**{"log_every_n_steps": EVERY, "layer_cards": None, **CHANGES[change]})
    first = train(tmp_path / "1", GradWatch(**before), calm_model(), steps=23, callbacks=(oracle,))
    run = resume(tmp_path / "2", first.checkpoint(23), watch=watch, model=calm_model(), callbacks=(oracle,))
    found, last = run.numbers, 19
    for step in sorted(step for tag, step in found if tag == "gradwatch/total_norm"):
        window = [oracle.totals[at] for at in range(last + 1, step + 1)]
        for tag, expected in (("_min", min(window)), ("", window[-1]), ("_max", max(window))):
            assert found[f"gradwatch/total_norm{tag}", step] == pytest.approx(expected, rel=1e-6)
        layers = {tag: tag.removeprefix("grad_norm/") for tag, at in found if (at, tag[:9]) == (step, "grad_norm")}
        for tag, layer in layers.items():
            expected = oracle.layers[layer][step] if layer in oracle.layers else window[-1]
            assert found[tag, step] == pytest.approx(expected, rel=1e-6)
        assert list(layers.values()) == (["net"] if "rows" in change else list(watch.profile))
        last = step
    for step in range(23, STEPS):
        expected_norms = [oracle.layers[layer][step] for layer in watch.profile]
        assert found["gradwatch/layers/grad_norm_steps", step] == pytest.approx(expected_norms, rel=2e-3)
    assert last == STEPS - 1
    assert [(a.kind, a.step, a.until_step) for a in run.alerts] == [("vanishing", 9, None)]


def test_the_threshold_may_change_at_a_resume(tmp_path: Path) -> None:
    """Tanh layers lose 1.2 decades: too much at a threshold of 0.6 decades, not enough at one of two."""

    def model() -> Any:
        return replayed(NAMESPACES[0])(deep_net(nn.Tanh, depth=8))

    strict, lenient, again = (GradWatch(vanishing_threshold=score) for score in (0.15, 0.5, 0.15))
    first = train(tmp_path / "1", strict, model(), steps=24)
    second = resume(tmp_path / "2", first.checkpoint(24), watch=lenient, model=model(), steps=45)
    resume(tmp_path / "3", second.checkpoint(45), watch=again, model=model(), steps=60)
    assert [(a.step, a.until_step) for a in strict.alerts] == [(9, None)]
    ((step, until),) = [(a.step, a.until_step) for a in lenient.alerts if a.kind == "vanishing"]
    assert (step, second.lines[-1]["event"]) == (9, "ended")
    assert until is not None
    assert until < 24
    assert [a.until_step is None for a in again.alerts if a.kind == "vanishing"] == [False, True]


class Renaming:
    """Takes the weights of a checkpoint by their place, whatever they are called."""

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        own = self.state_dict()  # type: ignore[attr-defined]
        checkpoint["state_dict"] = dict(zip(own, checkpoint["state_dict"].values(), strict=True))


def renamed_model() -> Any:
    class Renamed(Renaming, replayed(NAMESPACES[0])):  # type: ignore[misc]
        poisoned = ()

    layers = OrderedDict((f"layer{i}", module) for i, module in enumerate(deep_net(nn.Sigmoid, depth=12)))
    return Renamed(nn.Sequential(layers), lr=0.01)


@pytest.mark.parametrize("at", [7, 10, 27])
def test_layers_may_be_renamed_at_a_resume(tmp_path: Path, at: int) -> None:
    """The run as a whole goes on; what was known of the old names is left behind, and no name is mistaken."""

    def watch() -> GradWatch:
        return GradWatch(log_every_n_steps=EVERY)

    whole = train(tmp_path / "whole", watch(), calm_model())
    run = resume(tmp_path / "renamed", whole.checkpoint(at), watch=watch(), model=renamed_model())
    found, expected = resumed(run, at, ()), later(whole.numbers, at, ())
    for (tag, step), number in found.items():
        old = (tag.replace("net.layer", "net."), step)
        needs_its_past = tag == "gradwatch/weight_drift"
        if tag in SLOW and old not in expected:  # of layers that are new they are measured at once
            continue
        assert old in expected
        if tag == "gradwatch/layers/output_grad_norm":  # of layers that are new the first is measured in float64
            assert list(number) == pytest.approx(list(expected[old]), rel=1e-6)
            continue
        assert needs_its_past or tag in (*UPDATES, *SLOW) or repr(number) == repr(expected[old])
    layer = "net.0" if at > 9 else "net.layer0"
    assert [(a.kind, a.step, a.layer) for a in run.alerts] == [("vanishing", 9, layer)]
    assert opened(run) == (["vanishing"] if at <= 9 else [])
    assert run.watch is not None
    assert whole.watch is not None
    profile = list(whole.watch.profile.values())  # what is not known yet is measured in float64
    assert list(run.watch.profile.values()) == pytest.approx(profile, rel=1e-6)
    assert all(name.startswith("net.layer") for name in run.watch.profile)


@pytest.mark.parametrize("num_classes", [10, 12])
def test_the_head_may_be_replaced_at_a_resume(tmp_path: Path, num_classes: int) -> None:
    class Replaced(replayed(NAMESPACES[0])):  # type: ignore[misc]
        strict_loading = False
        poisoned = ()

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            for name in ("net.22.weight", "net.22.bias"):
                del checkpoint["state_dict"][name]

    first = train(tmp_path / "first", GradWatch(log_every_n_steps=EVERY), steps=23)
    oracle, net = Oracle(), deep_net(nn.Sigmoid, depth=12)
    net[-1] = nn.Linear(64, num_classes)
    run = resume(tmp_path / "second", first.checkpoint(23), model=Replaced(net, lr=0.01), callbacks=(oracle,))
    found = scalars(read_events(run.directory), "gradwatch/total_norm")
    assert list(found) == [24, 29, 34, 39, 44, 49, 54, 59]
    assert found == pytest.approx({step: oracle.totals[step] for step in found}, rel=1e-6)
    assert run.alerts == first.alerts
    assert run.warnings == []


@pytest.mark.parametrize("at", [32, 34])
def test_a_finished_run_may_be_fitted_further(tmp_path: Path, whole: Run, at: int) -> None:
    """Its last points are those of its end; then it goes on as if it had never ended."""
    watch = GradWatch(log_every_n_steps=EVERY)
    finished = train(tmp_path / "finished", watch, steps=at)
    assert max(step for _, step in finished.numbers) == at - 1
    idle = resume(tmp_path / "idle", finished.checkpoint(at), steps=at)
    assert (idle.numbers, idle.lines, idle.warnings) == ({}, [], [])
    assert idle.alerts == finished.alerts[: len(idle.alerts)] != []
    run = resume(tmp_path / "further", finished.checkpoint(at))
    assert run.alerts == whole.alerts
    assert same(resumed(run, at), later(whole.numbers, at))


def test_a_trainer_that_has_finished_may_go_back_to_its_own_checkpoint(tmp_path: Path, whole: Run) -> None:
    run = train(tmp_path, GradWatch(log_every_n_steps=EVERY), steps=40)
    run.trainer.fit_loop.epoch_loop.max_steps = STEPS
    run.trainer.fit(run.model, digits(), ckpt_path=run.checkpoint(10))  # a warning would be an error here
    assert run.alerts == whole.alerts
    assert run.lines == whole.lines
    assert same(later(run.numbers, 40), later(whole.numbers, 40))


class SaveAtTheStart(importlib.import_module(NAMESPACES[0]).Callback):  # type: ignore[misc]
    """Saves a checkpoint before the first step, as the finders of learning rates and batch sizes do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("at", [7, 24])
def test_a_checkpoint_saved_before_the_first_step_after_a_resume_is_complete(
    tmp_path: Path, whole: Run, at: int
) -> None:
    save = SaveAtTheStart(tmp_path / "again.ckpt")
    resume(tmp_path / "first", whole.checkpoint(at), callbacks=(save,), steps=at + 1)
    once, twice = (torch.load(path, weights_only=True)["callbacks"] for path in (whole.checkpoint(at), save.path))
    assert repr(once["GradWatch"]) == repr(twice["GradWatch"])


def damaged(whole: Run, directory: Path, damage: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint after step 24 with another state of ours."""
    checkpoint = torch.load(whole.checkpoint(24), weights_only=True)
    damage(checkpoint["callbacks"]["GradWatch"])
    path = directory / "damaged.ckpt"
    torch.save(checkpoint, path)
    return path


def of_the_watcher(damage: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda state: damage(state["watchers"][""])


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "from before there was a rule": (of_the_watcher(lambda w: w["detector"].pop("TimeRule")), ()),
    "from before there was evidence": (of_the_watcher(lambda w: w.pop("evidence")), ()),
    "from a later version": (
        lambda state: state.update(news=[1], alerts=[{**alert, "more": 1} for alert in state["alerts"]]), (),
    ),
    "an alert of a kind that is not known": (
        lambda state: state["alerts"].append({**state["alerts"][0], "kind": "overheated"}), ("alerts",),
    ),
    "parts of another kind": (
        of_the_watcher(lambda w: w.update(window=7, rows="rows", evidence={**w["evidence"], "effect": "low"})),
        ("watcher.rows", "watcher.window", "watcher.evidence.effect"),
    ),
    "nothing that can be read": (
        lambda state: state.update(watchers=3, alerts=None, num_alerts="2", version=[]), ("version", "watchers"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_checkpoint_lacks_starts_afresh_and_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, whole: Run, damage: str
) -> None:
    change, lost = DAMAGES[damage]
    run = resume(tmp_path, damaged(whole, tmp_path, change))
    assert run.watch is not None
    assert not session_of(run.watch).is_off
    said = [text for text in run.warnings if "cannot read these parts" in text]
    assert len(said) == bool(lost)
    assert all(part in said[0] for part in lost)
    assert ("vanishing", 9) in {(alert.kind, alert.step) for alert in run.alerts} or "nothing" in damage
    assert "nonfinite" in {alert.kind for alert in run.alerts}
    weights = zip(run.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)
