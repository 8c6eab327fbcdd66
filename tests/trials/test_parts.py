"""The parts of the engine: ranking, table, memory, losses and optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import Prescription, prescribe
from lightning_gradwatch.trials import optimizers
from lightning_gradwatch.trials.loss import loss_of, on_device
from lightning_gradwatch.trials.memory import TooLargeError, free_bytes, limited
from lightning_gradwatch.trials.model import TrialModel
from lightning_gradwatch.trials.ranking import ranked
from lightning_gradwatch.trials.records import NotTried, Trial
from tests.tasks import Classifier, deep_net, digits, small_net

from .remedies import REMEDIES

BATCH = next(iter(digits()))
SICK = Trial("", "untreated", "no change", decades=6.0, loss_before=2.3, loss_after=2.28)


def trial(key: str, after: float, decades: float = 0.2, before: float = 2.4) -> Trial:
    return Trial(key, key, "no change", decades, before, after, code=f"use({key!r})")


def keys(trials: list[Trial]) -> list[str]:
    return [trial.key for trial in trials]


@pytest.mark.parametrize(
    ("after", "decades", "effect"),
    [
        (1.0, 0.2, "helps"),
        (1.0, 7.0, "helps"),
        (2.29, 0.2, "helps"),  # the gradient arrives, and the loss falls faster
        (2.29, 5.5, "no change"),
        (2.29, 3.0, "no change"),  # better, but still lost
        (2.34, 0.2, "worse"),  # the gradient arrives, and the loss is clearly above that without it
        (2.6, 5.5, "worse"),
        (49.6, -0.1, "worse"),
        (math.nan, 0.2, "worse"),
    ],
)
def test_loss_and_gradient_decide_together_what_a_remedy_does(after: float, decades: float, effect: str) -> None:
    assert ranked(SICK, [trial("x", after, decades)])[0].effect == effect


def test_whatever_survives_helps_where_the_untreated_one_diverges() -> None:
    diverged = replace(SICK, loss_before=1e9, loss_after=math.nan, decades=-8.0)
    result = ranked(diverged, [trial("a", 1e8, -8.0, 1e9), trial("b", math.nan, -8.0, 1e9), trial("c", 1.0)])
    assert [(t.key, t.effect) for t in result] == [("c", "helps"), ("a", "helps"), ("b", "no change")]


def test_of_what_gains_about_as_much_the_smallest_change_comes_first_family_by_family() -> None:
    trials = [trial(key, loss) for key, loss in {
        "residual.layers": 0.7, "norm.batch": 0.8, "norm.batch + residual.layers": 0.0, "init.xavier": 1.3,
        "init.he": 1.2, "init.orthogonal": 2.0, "lr.tenth": 2.29,
    }.items()]  # fmt: skip
    assert keys(ranked(SICK, trials)) == [
        "init.he", "norm.batch", "residual.layers", "norm.batch + residual.layers", "init.xavier", "init.orthogonal",
        "lr.tenth",
    ]  # fmt: skip


def test_what_gains_clearly_more_comes_first_however_much_it_changes() -> None:
    assert keys(ranked(SICK, [trial("init.he", 2.0), trial("recurrent.lstm", 0.1)])) == ["recurrent.lstm", "init.he"]


def test_of_two_together_that_change_the_same_the_better_comes_before_what_changes_more() -> None:
    diverged = replace(SICK, loss_after=math.nan, decades=math.nan)
    trials = [trial(f"{key} + init.he", loss) for key, loss in {
        "lr.tenth": 0.5, "lr.hundredth": 0.6, "clip.norm": 0.7}.items()]  # fmt: skip
    together = keys(ranked(diverged, [*trials, trial("lr.tenth", math.nan)]))
    assert together == ["lr.tenth + init.he", "clip.norm + init.he", "lr.hundredth + init.he", "lr.tenth"]


@pytest.mark.parametrize(
    ("cause", "first"),
    [
        ("weight_decay", "weight_decay.zero + init.he"),
        ("no_skip_or_norm", "norm.batch"),
        ("normalisation_order", "prenorm"),
        ("learning_rate", "clip.norm"),
        ("unknown", "clip.norm"),
    ],
)
def test_what_takes_away_the_cause_comes_before_what_makes_up_for_it(cause: str, first: str) -> None:
    losses = {"clip.norm": 1.4, "init.he": 1.2, "norm.batch": 1.0, "prenorm": 1.3, "weight_decay.zero + init.he": 1.5}
    trials = [trial(key, loss) for key, loss in losses.items()]
    assert keys(ranked(SICK, trials, "vanishing", cause))[0] == first
    both = "clip.norm + init.he"
    alone = ranked(SICK, [*trials, trial(both, 0.1)], "exploding", "learning_rate")
    assert keys(alone).index("clip.norm") < keys(alone).index(both)  # one before two, if one is enough
    hardly = [replace(t, loss_after=2.2) if t.key == first else t for t in trials]
    assert keys(ranked(SICK, hardly, "vanishing", cause))[0] != first  # unless it gains little


def test_where_no_loss_falls_clearly_a_cured_gradient_comes_first() -> None:
    trials = [trial("init.he", 2.10, 5.0), trial("norm.layer", 2.15, 0.1)]
    assert keys(ranked(SICK, trials)) == ["norm.layer", "init.he"]
    assert keys(ranked(SICK, [*trials, trial("prenorm", 1.0, 3.0)]))[0] == "prenorm"


def test_what_is_learned_by_heart_says_nothing_of_a_memory() -> None:
    untreated = replace(SICK, decades=14.0, loss_after=1.97)
    trials = [
        trial("recurrent.identity", 1.7, 0.1), trial("recurrent.orthogonal", 1.6, 3.8),
        trial("recurrent.lstm", 1.96, 0.7), trial("recurrent.gru", 1.98, 0.5), trial("recurrent.forget_bias", 2.3, 0.5),
    ]  # fmt: skip
    result = ranked(untreated, trials, "vanishing_through_time", "recurrence")
    assert [(t.key.partition(".")[2], t.effect) for t in result] == [
        ("gru", "helps"), ("lstm", "helps"), ("identity", "helps"), ("orthogonal", "helps"),
        ("forget_bias", "no change"),
    ]  # fmt: skip
    assert keys(ranked(untreated, trials, "vanishing"))[0] == "recurrent.orthogonal"


def test_negative_losses_are_ranked_too() -> None:
    untreated = Trial("", "untreated", "no change", 5.0, -1.0, -1.01)
    result = ranked(untreated, [trial("a", -1.0, 5, -1.0), trial("b", -3.0, 0.1, -1.0), trial("c", -0.5, 5, -1.0)])
    assert [(t.key, t.effect) for t in result] == [("b", "helps"), ("a", "no change"), ("c", "worse")]


def test_after_a_single_backward_pass_the_gradient_alone_decides() -> None:
    untreated = replace(SICK, loss_after=SICK.loss_before)
    decades = {"a": 6.1, "b": 0.1, "c": -9.0, "d": 4.5, "e": -2.9, "f": math.nan}
    losses = [2.4 - i / 10 for i in range(len(decades))]
    trials = [trial(key, loss, d, loss) for loss, (key, d) in zip(losses, decades.items(), strict=True)]
    result = ranked(untreated, trials)
    assert [(t.key, t.effect) for t in result] == [
        ("b", "helps"), ("e", "helps"), ("d", "no change"), ("a", "no change"), ("f", "no change"), ("c", "worse"),
    ]  # fmt: skip


LONG = "a remedy with so long a name that it needs more than a single line of the table, as two joined ones often do"


def prescription() -> Prescription:
    trials = ranked(SICK, [trial("init.he", 0.1), trial("lr.tenth", 2.29, 6.0), trial("norm", math.nan)])
    trials.insert(1, replace(trials[0], key="init.he + norm", code="use(both)"))
    trials[0] = replace(trials[0], remedy=LONG, parameters_percent=3.2, time_percent=12.4)
    trials[2] = replace(trials[2], decades=-0.04, time_percent=-9.4)
    missing = tuple(NotTried(key, key, "no room for it") for key in ("a", "b"))
    return Prescription("It is sick.", SICK, tuple(trials), missing, 20, kind="vanishing", cause="small_init")


def test_a_trial_by_itself_says_what_came_of_it_and_how_to_do_the_same() -> None:
    assert str(trial("he", 1.25)) == "he: no change (loss 2.4 -> 1.25, 0.2 orders of magnitude lost)\nuse('he')"
    assert str(replace(trial("he", math.nan, decades=math.nan), code="")) == "he: no change (loss 2.4 -> nan)"


def test_the_table_shows_what_helps_first_and_everything_else_as_what_it_is() -> None:
    text = str(prescription())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(lines[2].split()) == "remedy effect orders of magnitude lost loss after 20 parameters time"
    assert text.index("a remedy with") < text.index("lr.tenth") < text.index("diverged")
    assert "6.0 -> 0.2" in text
    assert "6.0 -> 0.0" in text
    assert "+3 %" in text
    assert "+12 %" in text
    assert "9 %" not in text  # of a step's time: an accident
    assert "    use('init.he')" in text
    assert "use('lr.tenth')" not in text
    assert "use(both)" not in text
    assert ".trials[i].code" in text
    assert "  a, b: no room for it" in text
    assert " ".join(LONG.split()[:6]) in text
    assert LONG.split()[-1] in text


def test_a_prescription_is_primitives_for_json() -> None:
    import json

    assert json.loads(json.dumps(prescription().as_dict()))["trials"][0]["key"] == "init.he"


def test_memory_is_refused_in_the_forward_pass_before_it_is_used() -> None:
    net, inputs = deep_net(depth=6), torch.randn(1000, 64)
    with limited(7 * 1000 * 64 * 4 * 2, net.parameters()):
        net(inputs).sum().backward()
    with pytest.raises(TooLargeError, match="more memory than"), limited(3 * 1000 * 64 * 4, net.parameters()):
        net(inputs)


def test_a_remedy_that_needs_too_much_memory_is_listed() -> None:
    def widen(trial_model: TrialModel) -> None:
        trial_model.model.append(nn.Sequential(nn.Linear(10, 5000), nn.ReLU(), nn.Linear(5000, 10)))  # type: ignore[operator]

    from lightning_gradwatch.trials.model import Remedy

    remedies = (Remedy("x.wide", "width", "", widen), *REMEDIES)
    found = prescribe(small_net(), BATCH, nn.CrossEntropyLoss(), candidates=["x.wide", "init.*"], remedies=remedies,
                      max_memory=1_000_000, progress=False)  # fmt: skip
    assert keys(list(found.trials)) == ["init.he"]
    assert "needs more memory" in found.not_tried[0].why


def test_free_memory_is_what_the_system_says() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    "step",
    [
        lambda self, batch: self.net(batch[0]).sum(),
        lambda self, batch, batch_idx: {"loss": self.net(batch[0]).sum() + batch_idx},
        lambda self, batch, batch_idx, dataloader_idx=0: self.net(batch[0]).sum() + dataloader_idx,
        lambda self, *args: self.net(args[0][0]).sum() + args[1],
    ],
)
def test_any_training_step_gets_its_arguments(step: Callable[..., Any]) -> None:
    class Module(Classifier):  # type: ignore[misc, valid-type]
        training_step = step

    model = Module(small_net())
    assert torch.equal(loss_of(model, BATCH), model.net(BATCH[0]).sum())


def test_a_batch_that_is_no_pair_goes_to_the_loss_function_with_the_model() -> None:
    net = small_net()
    loss = loss_of(net, {"x": BATCH[0]}, lambda model, batch: model(batch["x"]).sum())
    assert torch.equal(loss, net(BATCH[0]).sum())


class Moving(dict[str, Any]):
    """Moves itself, as batches of Hugging Face do."""

    moved = False

    def to(self, device: torch.device) -> Moving:
        self.moved = True
        return self


def test_a_batch_is_moved_and_the_users_own_is_not() -> None:
    own = Moving()
    parts = on_device((own, [torch.ones(1)], {"a": torch.ones(1)}, "text"), torch.device("meta"))
    assert parts[1][0].is_meta
    assert parts[2]["a"].is_meta
    assert parts[3] == "text"
    assert not own.moved


def schedule(optimizer: Any, **options: Any) -> dict[str, Any]:
    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step + 1.0), **options}


@pytest.mark.parametrize(
    ("arrange", "num_schedules"),
    [
        (lambda o: o, 0),
        (lambda o: [o], 0),
        (lambda o: ([o], [schedule(o, interval="step")]), 1),
        (lambda o: ([o], [schedule(o)["scheduler"]]), 0),
        (lambda o: {"optimizer": o, "lr_scheduler": schedule(o, interval="step")}, 1),
        (lambda o: {"optimizer": o, "lr_scheduler": schedule(o, interval="epoch")}, 0),
        (lambda o: ({"optimizer": o},), 0),
    ],
)
def test_whatever_configure_optimizers_returns_is_understood(arrange: Callable[[Any], Any], num_schedules: int) -> None:
    model = Classifier(small_net())
    model.configure_optimizers = lambda: arrange(torch.optim.SGD(model.parameters(), 0.1))
    optimizer, schedules = optimizers.make(model, None)
    assert isinstance(optimizer, torch.optim.SGD)
    assert len(schedules) == num_schedules


def test_an_optimizer_that_cannot_be_configured_is_asked_for() -> None:
    def fails() -> None:
        raise RuntimeError("no Trainer")

    model = Classifier(small_net())
    model.configure_optimizers = fails
    with pytest.raises(ValueError, match="`configure_optimizers` fails, but 'no Trainer' came"):
        optimizers.make(model, None)


def test_a_copied_optimizer_follows_what_a_remedy_did() -> None:
    net = small_net()
    values = {name: p.clone() for name, p in net.named_parameters()}
    groups = [
        {"params": [net[0].weight, net[0].bias], "lr": 1.0},
        {"params": [*net.get_submodule("4").parameters()], "lr": 2.0},
    ]
    optimizer = torch.optim.Adam(groups)
    before = dict(net.named_parameters())
    for p in net.parameters():
        optimizer.state[p] = {"step": torch.ones(())}
    old = next(net.get_submodule("4").parameters())
    net[4] = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 10))
    with torch.no_grad():
        net.get_parameter("0.weight").add_(1)
    optimizers.follow(optimizer, before, values, net)
    first, second = ([*map(id, group["params"])] for group in optimizer.param_groups)
    assert first == [id(net[0].weight), id(net[0].bias)]
    assert second == [*map(id, net.get_submodule("4").parameters())]  # not net[2]: nobody trained it
    assert id(old) not in second
    assert set(optimizer.state) == {net[0].bias}


def test_a_network_that_differentiates_inside_is_tried_without_counting_its_memory() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(torch.func.grad(lambda row: self.net(row).sum()))(x)

    found = prescribe(Slope(), BATCH, lambda slope, _: slope.square().mean(), candidates="init.*", remedies=REMEDIES)
    assert math.isfinite(found.trials[0].loss_after)


def test_what_has_no_remedy_says_so() -> None:
    assert "No remedy is known" in str(Prescription("It is detached.", SICK, kind="detached", cause="detached"))


def test_settings_of_a_patient_reach_the_optimizer() -> None:
    net = small_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
    optimizers.adjust(optimizer, TrialModel(net, None, lr_scale=0.1, adam_eps=1e-12, weight_decay=0.5))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.1, 1e-12, 0.5)


def test_a_loss_that_forgets_the_copy_is_refused_and_changes_nothing() -> None:
    net = nn.Sequential(small_net(), nn.BatchNorm1d(10))
    outside: dict[str, nn.Module] = {"net": net}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        outside["net"].train()
        return nn.functional.cross_entropy(outside["net"](BATCH[0]), target)

    before = {name: tensor.clone() for name, tensor in net.eval().state_dict().items()}
    with pytest.raises(ValueError, match="reaches no parameter of the copy"):
        prescribe(net, BATCH, loss, remedies=REMEDIES)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_an_optimizer_of_another_model_is_refused() -> None:
    other = torch.optim.SGD(small_net().parameters(), 0.1)
    with pytest.raises(ValueError, match="that of the model's parameters"):
        prescribe(small_net(), BATCH, nn.CrossEntropyLoss(), optimizer=other, remedies=REMEDIES)


def test_warm_up_and_clipping_and_schedules_take_part_in_a_trial() -> None:
    from lightning_gradwatch.trials.run import TrialRun

    rates, norms = [], []
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), 8.0)

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        squares = [p.grad.square().sum() for p in net.parameters() if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))

    optimizer.register_step_pre_hook(look)
    trial_model = TrialModel(net, BATCH, warmup_steps=4, clip=0.5, loss=lambda m, b: 100 * m(b[0]).square().mean())
    trial_run = TrialRun(trial_model, optimizer, [], [BATCH])
    for _ in range(5):
        trial_run.advance()
    assert rates == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert max(norms) == pytest.approx(0.5, rel=1e-3)
