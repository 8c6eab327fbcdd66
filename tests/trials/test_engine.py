"""`prescribe`: what it finds, what it leaves alone, and where it stops."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Prescription, prescribe
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.trials.model import Remedy, TrialModel
from tests.tasks import Classifier, deep_net, digits, quiet_trainer, small_net

from .bits import snapshot
from .models import LastStep, sequences
from .remedies import HE, LOWER, RELU, REMEDIES

pytestmark = pytest.mark.slow

BATCH = next(iter(digits()))
LOSS = nn.CrossEntropyLoss()


def ask(model: Any, batch: Any = BATCH, *args: Any, **options: Any) -> Prescription:
    """With the remedies of the tests, unless told otherwise."""
    return prescribe(model, batch, *args, **{"remedies": REMEDIES, "progress": False, **options})


def in_training() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network with everything that can be disturbed, after three steps of Adam, with gradients at hand."""
    torch.manual_seed(3)
    net = deep_net(depth=12)
    net.insert(1, nn.BatchNorm1d(64))
    net.append(nn.Dropout(0.1))
    net[2].register_forward_hook(lambda *_: None)
    net[5].weight.requires_grad_(False)
    net[1].eval()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        LOSS(net(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    np.random.seed(5)
    random.seed(6)
    return net, optimizer


def disturbing(failure: BaseException | None) -> Remedy:
    """Changes whatever a remedy could reach, and then perhaps fails."""

    def apply(trial_model: TrialModel) -> None:
        for tensor in (*trial_model.model.parameters(), *trial_model.model.buffers()):
            tensor.data.zero_()
            tensor.requires_grad_(tensor.is_floating_point())
        for part in trial_model.batch:
            part.zero_()
        trial_model.model.eval().register_forward_hook(lambda *_: None)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = True
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if failure is not None:
            raise failure

    return Remedy("x.y", "disturbance", "", apply, kinds=frozenset({"vanishing"}))


def test_a_sick_network_is_told_what_helps_it() -> None:
    found = ask(deep_net(depth=8), BATCH, LOSS, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert found.kind == "vanishing"
    assert found.is_needed
    assert found.untreated.decades > 3
    by_key = {trial.key: trial for trial in found.trials}
    assert set(by_key) >= {"activation.relu", "init.he", "norm.layer"}
    assert "lr.tenth" not in by_key
    together = next(trial for key, trial in by_key.items() if " + " in key)
    assert found.best is not None
    assert together.effect == "helps"
    assert found.best.loss_after < found.untreated.loss_after
    assert by_key["norm.layer"].parameters_percent == pytest.approx(100 * 7 * 128 / (7 * 64 * 65 + 650))


def test_a_healthy_network_needs_nothing() -> None:
    found = ask(deep_net(nn.ReLU, 8, he_init=True), BATCH, LOSS)
    assert not found.is_needed
    assert found.trials == ()
    assert found.not_tried == ()
    assert found.best is None
    assert re.fullmatch(r"Nothing was found: no alert in \d\d steps on this batch\.", str(found))


def test_an_all_clear_is_not_given_before_anything_could_be_told() -> None:
    def slow(output: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.3)
        return LOSS(output, target)

    found = ask(deep_net(depth=6), BATCH, slow, max_seconds=0.5)
    assert "Nothing was found" not in found.diagnosis
    assert re.match(r"No alert in \d steps? on this batch, when time was up: too few to tell", found.diagnosis)


def test_a_recurrence_that_forgets_is_mentioned_without_an_alert() -> None:
    torch.manual_seed(0)
    batches = DataLoader(TensorDataset(*sequences(40)), batch_size=4)
    for rnn, forgets in ((nn.RNN(4, 16, batch_first=True), True), (nn.LSTM(4, 16, batch_first=True), False)):
        model = LastStep(rnn)
        if not forgets:
            nn.init.constant_(rnn.get_parameter("bias_ih_l0").data[16:32], 8.0)
        found = ask(model, batches, LOSS, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
        assert not found.is_needed
        assert "Nothing was found: no alert in" in found.diagnosis
        assert "on these 2 batches" in found.diagnosis
        told = re.search(r"its 40 time steps the gradient loses (\S+) orders of magnitude", found.diagnosis)
        assert (told is not None and float(told[1]) > 3) is forgets


def test_a_setting_that_comes_too_late_is_tried_with_new_weights() -> None:
    model = small_net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)  # what a wrong rate has left
    alert = Alert("exploding", "alert", 7, None, "", 1.0, 1.0, "It explodes.", cause="learning_rate")
    options: dict[str, Any] = {"alert": alert, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
    lower = replace(LOWER, causes=frozenset({"learning_rate"}))
    found = ask(model, BATCH, LOSS, **options, remedies=(lower, HE))
    assert [trial.key for trial in found.trials] == ["lr.tenth + init.he", "lr.tenth"]
    assert [trial.effect == "helps" for trial in found.trials] == [True, False]
    assert "nn.init" in found.trials[0].code
    assert "lr" in found.trials[0].code
    alone = ask(model, BATCH, LOSS, **options, remedies=(lower, HE), candidates="lr.*")
    assert [trial.key for trial in alone.trials] == ["lr.tenth"]  # no more than what was asked for


@pytest.mark.parametrize(("cause", "is_tried"), [("unknown", True), ("bad_data", False), ("unstable_op", False)])
def test_new_weights_come_to_the_help_of_a_setting_only_where_they_could_help(cause: Any, is_tried: bool) -> None:
    model = small_net()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = torch.nan
    alert = Alert("nonfinite", "alert", 7, None, "", 1.0, 1.0, "It is lost.", cause=cause)
    found = ask(model, BATCH, LOSS, alert=alert, remedies=(LOWER, HE))
    tried = [trial.key for trial in found.trials]
    assert tried == (["lr.tenth + init.he", "lr.tenth"] if is_tried else ["lr.tenth"])


def test_a_setting_that_helps_alone_is_not_tried_with_new_weights() -> None:
    alert = Alert("exploding", "alert", 7, None, "", 1.0, 1.0, "It explodes.", cause="learning_rate")
    found = ask(small_net(), BATCH, LOSS, alert=alert, optimizer=lambda p: torch.optim.SGD(p, lr=5.0),
                remedies=(replace(LOWER, causes=frozenset({"learning_rate"})), HE))  # fmt: skip
    assert [(trial.key, trial.effect) for trial in found.trials] == [("lr.tenth", "helps")]


def test_a_warm_up_ends_within_a_trial_so_that_the_full_rate_is_seen() -> None:
    rates: list[float] = []

    class Telling(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def warm(trial_model: TrialModel) -> None:
        trial_model.warmup_steps = 100

    remedy = Remedy("lr.warmup", "warm-up", "", warm)
    for steps, rise in ((8, [0.25, 0.5, 0.75]), (1, [])):
        rates.clear()
        ask(small_net(), BATCH, LOSS, steps=steps, candidates="lr.*", remedies=(remedy,),
            optimizer=lambda p: Telling(p, lr=1.0))  # fmt: skip
        assert rates[-steps:] == [*rise, *[1.0] * (steps - len(rise))]


def test_the_time_of_a_step_is_told_only_where_the_step_is_another() -> None:
    found = ask(deep_net(depth=8), BATCH, LOSS, candidates=["init.*", "norm.*"])
    by_key = {trial.key: trial.time_percent for trial in found.trials}
    assert by_key["init.he"] == 0
    assert by_key["norm.layer"] != 0


def test_a_healthy_network_is_treated_all_the_same_if_that_is_asked_for() -> None:
    found = ask(small_net(), BATCH, LOSS, candidates="lr.*")
    assert [trial.key for trial in found.trials] == ["lr.tenth"]
    assert not found.is_needed
    assert found.trials[0].loss_after > found.untreated.loss_after
    assert found.trials[0].effect == "worse"


def test_a_lightning_module_needs_no_loss_function() -> None:
    assert ask(Classifier(deep_net())).best is not None


def test_an_alert_that_is_given_is_not_found_again() -> None:
    said: Any = {"message": "It is bad. Try: prayer.", "cause": "learning_rate", "remedies": ("prayer",)}
    alert = Alert("nonfinite", "alert", 7, None, "", 1.0, 1.0, **said)
    found = ask(small_net(), BATCH, LOSS, alert=alert)
    assert (found.diagnosis, found.kind, found.cause) == ("It is bad.", "nonfinite", "learning_rate")
    assert sorted(trial.key for trial in found.trials) == ["lr.tenth", "lr.tenth + init.he"]


def test_the_same_seed_gives_the_same_prescription() -> None:
    model = nn.Sequential(deep_net(depth=9), nn.Dropout(0.2))
    first, second, other = (ask(model, BATCH, LOSS, seed=seed) for seed in (1, 1, 2))
    timeless = [[replace(trial, time_percent=0.0) for trial in p.trials] for p in (first, second, other)]
    assert timeless[0] == timeless[1] != timeless[2]


def test_a_trial_does_not_depend_on_those_before_it() -> None:
    model = nn.Sequential(deep_net(depth=5), nn.Dropout(0.2))
    alone = ask(model, BATCH, LOSS, candidates="init.he").trials[0]
    among = {trial.key: trial for trial in ask(model, BATCH, LOSS, candidates="all").trials}
    assert replace(among["init.he"], time_percent=0.0) == replace(alone, time_percent=0.0)


def test_what_is_dropped_out_does_not_decide() -> None:
    model = nn.Sequential(small_net(), nn.Dropout(0.5))
    found = ask(model, BATCH, LOSS, optimizer=lambda p: torch.optim.SGD(p, 0.0), candidates="lr.*", steps=3)
    assert found.untreated.loss_after == found.untreated.loss_before == found.trials[0].loss_after


def test_a_loss_that_hardly_falls_on_one_batch_is_taken_for_flat() -> None:
    found = ask(small_net(), BATCH, LOSS, optimizer=lambda p: torch.optim.SGD(p, 1e-8))
    assert (found.kind, found.cause) == ("stalled", "learning_rate")


@pytest.mark.parametrize("failure", [None, RuntimeError("no"), KeyboardInterrupt()])
def test_everything_is_as_before_bit_for_bit_however_it_ends(failure: BaseException | None) -> None:
    model, optimizer = in_training()
    batch = [part.clone() for part in BATCH]
    before = snapshot(model, optimizer)
    remedies = (disturbing(failure), *REMEDIES)
    if isinstance(failure, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            ask(model, batch, LOSS, optimizer=optimizer, candidates="all", remedies=remedies)
    else:
        found = ask(model, batch, LOSS, optimizer=optimizer, candidates="all", remedies=remedies)
        assert len(found.trials) >= 3
    assert snapshot(model, optimizer) == before
    assert all(torch.equal(a, b) for a, b in zip(batch, BATCH, strict=True))


def test_the_comparison_of_bits_can_fail() -> None:
    model, optimizer = in_training()
    before = snapshot(model, optimizer)
    torch.rand(1)
    assert snapshot(model, optimizer) != before
    model, optimizer = in_training()
    before = snapshot(model, optimizer)
    model[1].running_mean[0] += 1e-7  # type: ignore[index, operator]
    assert snapshot(model, optimizer) != before


def test_it_works_where_gradients_are_off_and_leaves_them_off() -> None:
    with torch.no_grad():
        assert ask(deep_net(), BATCH, LOSS).is_needed
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert ask(deep_net(), BATCH, LOSS).is_needed


class Asks(pl.Callback):
    """Asks in the middle of a training."""

    def __init__(self) -> None:
        self.found: list[Prescription] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            self.found.append(ask(pl_module, batch, optimizer=trainer.optimizers[0], candidates="all"))


def trained(*callbacks: pl.Callback) -> tuple[dict[str, Any], Any]:
    pl.seed_everything(1, verbose=False)
    model = Classifier(nn.Sequential(deep_net(depth=6), nn.Dropout(0.1)), optimizer=torch.optim.Adam, lr=1e-3)
    trainer = quiet_trainer(*callbacks)
    trainer.fit(model, digits())
    return dict(model.state_dict()), trainer


def test_a_run_in_which_it_was_asked_goes_on_bit_for_bit_as_one_in_which_it_was_not() -> None:
    asks = Asks()
    with_it, trainer = trained(asks)
    without, other = trained()
    assert len(asks.found[0].trials) >= 3
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert trainer.callback_metrics == other.callback_metrics


def test_time_is_bounded_and_what_was_not_reached_is_listed() -> None:
    sloth = Remedy("x.slow", "patience", "", lambda _: time.sleep(2.5))
    found = ask(small_net(), BATCH, LOSS, candidates="all", remedies=(sloth, HE), max_seconds=2.5)
    assert found.trials == ()
    why = "time was up after 2.5 s; a larger max_seconds tries it"
    assert [(entry.key, entry.why) for entry in found.not_tried] == [("x.slow", why), ("init.he", why)]


def test_what_fails_under_a_remedy_is_listed_with_its_reason() -> None:
    def breaks(trial_model: TrialModel) -> None:
        trial_model.model[0] = nn.Linear(5, 64)  # type: ignore[operator]

    bad = Remedy("x.bad", "nonsense", "", breaks)
    found = ask(small_net(), BATCH, LOSS, candidates="all", remedies=(bad, RELU, HE))
    assert [trial.key for trial in found.trials] == ["init.he"]
    why = {entry.key: entry.why for entry in found.not_tried}
    assert "shapes cannot be multiplied" in why["x.bad"]
    assert why["activation.relu"] == "no sigmoids"


def test_a_divergence_is_worse() -> None:
    def burst(trial_model: TrialModel) -> None:
        trial_model.lr_scale = 1e9

    found = ask(small_net(), BATCH, LOSS, candidates="all", remedies=(Remedy("lr.huge", "haste", "", burst), HE))
    assert found.trials[-1].key == "lr.huge"
    assert found.trials[-1].effect == "worse"


def test_no_steps_mean_a_single_backward_pass() -> None:
    found = ask(deep_net(), BATCH, LOSS, steps=0, candidates="all")
    assert found.num_steps == 0
    assert all(trial.loss_after == trial.loss_before for trial in (found.untreated, *found.trials))
    assert found.best is not None
    assert found.best.decades < found.untreated.decades


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (small_net, {"steps": -1}, "`steps` must be an integer of 0 or more"),
        (small_net, {"max_seconds": 0}, "`max_seconds` must be a number above 0"),
        (small_net, {"candidates": "init.hx"}, "`candidates` must be .* the remedies are activation.relu, init.he"),
        (small_net, {"candidates": [3]}, "`candidates` must be"),
        (small_net, {"loss_fn": None}, "`loss_fn` must be given"),
        (small_net, {"loss_fn": lambda out, y: out}, "whose loss is one element"),
        (small_net, {"seed": -1}, "`seed` must be an integer of 0 or more"),
        (small_net, {"precision": "16-mixed"}, "`precision` must be None, torch.bfloat16 or torch.float16"),
        (small_net, {"optimizer": 3}, "`optimizer` must be an optimizer"),
        (small_net, {"optimizer": torch.optim.LBFGS}, "`optimizer` must be an optimizer that steps with one gradient"),
        (lambda: "a net", {}, "`model` must be a torch module"),
        (lambda: nn.Sequential(nn.LazyLinear(10)), {}, "lazy layers"),
        (small_net, {"max_memory": 1000}, "and may take 0 MiB"),
        (small_net, {"max_memory": 700_000, "batch": [p.repeat(64, *[1] * (p.ndim - 1)) for p in BATCH]}, "needs more"),
        (lambda: nn.Linear(5, 5), {}, "the untreated model fails on a copy: .*shapes"),
    ],
)
def test_what_cannot_be_done_is_refused_in_plain_words(
    model: Callable[[], Any], options: dict[str, Any], match: str
) -> None:
    arguments = {"loss_fn": LOSS, "batch": BATCH, **options}
    with pytest.raises((ValueError, RuntimeError), match=match):
        ask(model(), arguments.pop("batch"), **arguments)


class Gan(Classifier):  # type: ignore[misc, valid-type]
    """Optimizes by hand."""

    automatic_optimization = False


def test_manual_optimization_and_several_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="manual optimization"):
        ask(Gan(small_net()))
    two = Classifier(small_net())
    two.configure_optimizers = lambda: [torch.optim.SGD(two.parameters(), 0.1), torch.optim.SGD(two.parameters(), 0.1)]
    with pytest.raises(ValueError, match="2 of `configure_optimizers`"):
        ask(two)


def test_batches_of_a_loader_are_taken_in_turns() -> None:
    seen: set[float] = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.add(float(target[0]))
        return (output.squeeze(1) - target).square().mean()

    loader = DataLoader(TensorDataset(torch.randn(90, 3), torch.arange(90.0)), batch_size=10)
    ask(nn.Linear(3, 1), loader, loss, candidates="lr.*")
    assert seen == {10.0 * i for i in range(8)}


@pytest.mark.slow  # with the extra [gallery]
def test_a_network_of_hugging_face_is_asked_for_its_own_loss() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=2, n_positions=16)
    tokens = torch.arange(16).view(2, 8)
    found = ask(transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}, candidates="lr.*")
    assert found.trials[0].loss_before == pytest.approx(3, abs=0.3)


def test_mixed_precision_is_that_of_the_trials() -> None:
    seen: set[torch.dtype] = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.add(output.dtype)
        return LOSS(output.float(), target)

    for precision in (torch.bfloat16, torch.float16):
        found = ask(deep_net(depth=6), BATCH, loss, precision=precision, candidates="init.*")
        assert seen == {precision}
        assert found.trials[0].loss_after < found.untreated.loss_before
        seen.clear()


def test_the_runs_own_clipping_is_that_of_the_trials() -> None:
    def fall(**options: Any) -> float:
        found = ask(small_net(), BATCH, lambda x, y: 1e3 * LOSS(x, y), candidates="lr.*", **options,
                    optimizer=lambda p: torch.optim.SGD(p, 0.1))  # fmt: skip
        return found.untreated.loss_before - found.untreated.loss_after

    assert not fall() > 0
    assert fall(clip=1.0) > 0
    with pytest.raises(ValueError, match="auto_clip"):
        fall(clip="everything")


def test_a_bar_is_shown_on_request_and_when_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    sloth = Remedy("x.slow", "patience", "", lambda _: time.sleep(1.1))
    for progress, remedies, is_shown in ((True, (HE,), True), (None, (sloth, HE), True), (False, (sloth, HE), False)):
        ask(small_net(), BATCH, LOSS, candidates="all", progress=progress, remedies=remedies)
        assert ("GradWatch tries remedies" in capsys.readouterr().err) is is_shown


def test_lower_rates_and_weight_decay_reach_a_copied_optimizer_and_not_the_real_one() -> None:
    model, optimizer = in_training()
    found = ask(model, BATCH, LOSS, optimizer=optimizer, candidates="lr.tenth")
    fall = [t.loss_before - t.loss_after for t in (found.untreated, found.trials[0])]
    assert fall[0] > fall[1] > 0
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert LOWER.key == found.trials[0].key
