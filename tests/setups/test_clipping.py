"""``auto_clip`` and ``on_nonfinite`` in every training setup, against loops in which torch itself clips."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_gradwatch import AGC, AdaGC, GradientAlertError, GradWatch, GradWatchWarning, MaxNorm, Percentile, ZScore
from lightning_gradwatch.core.reader import Reader
from tests.tasks import (
    Classifier,
    Poison,
    digits,
    fit,
    norms_by_step,
    quiet_trainer,
    read_events,
    scalars,
    small_net,
    tensors,
)

cross_entropy = nn.functional.cross_entropy
STEPS = 12
LIMIT = 0.5


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def identical(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def train_by_hand(limit: float = LIMIT, micro_batches: int = 1, optimizer: Any = None) -> list[Tensor]:
    """Clipped by torch."""
    net = small_net()
    opt = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.1)))(net.parameters())
    batches = iter(list(digits()) * 4)
    for _ in range(STEPS):
        opt.zero_grad()
        for _ in range(micro_batches):
            pixels, digit = next(batches)
            (cross_entropy(net(pixels), digit) / micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
        opt.step()
    return weights(net)


def fp16() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


class After(pl.Callback):
    """Measures what is left after GradWatch has clipped, by torch's own function."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        is_scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item() / (scaler.get_scale() if is_scaled else 1.0))


def clipped(watch: GradWatch, model: Any = None, **options: Any) -> tuple[Any, After]:
    model, after = model or Classifier(small_net()), After()
    trainer = quiet_trainer(watch, after, **{"max_steps": STEPS, **options})
    trainer.fit(model, digits())
    return model, after


def test_a_fixed_norm_trains_as_torchs_own_does() -> None:
    model, _ = clipped(GradWatch(auto_clip=LIMIT))
    assert close(weights(model), train_by_hand())


@pytest.mark.parametrize("num", [3, 5])
def test_under_accumulation_the_complete_gradient_is_clipped(num: int) -> None:
    model, _ = clipped(GradWatch(auto_clip=LIMIT), accumulate_grad_batches=num, max_steps=STEPS // 3 * 3)
    if 28 % num == 0:  # otherwise Lightning steps early at the end of an epoch
        assert close(weights(model), train_by_hand(micro_batches=num))
    _, after = clipped(GradWatch(auto_clip=LIMIT), accumulate_grad_batches=num)
    assert max(after.norms) <= LIMIT * 1.0001
    assert max(after.norms) == pytest.approx(LIMIT, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_loss_scaler_the_unscaled_norm_is_clipped_also_for_fused_optimizers(fused: bool) -> None:
    def model() -> Any:
        return Classifier(small_net(), optimizer=torch.optim.Adam, lr=1e-3, fused=fused)

    _, free = clipped(GradWatch(), model(), plugins=[fp16()])
    assert min(free.norms) > LIMIT
    _, after = clipped(GradWatch(auto_clip=LIMIT), model(), plugins=[fp16()])
    assert after.norms == pytest.approx([LIMIT] * STEPS, rel=1e-3)
    if fused:
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            clipped(GradWatch(), model(), plugins=[fp16()], gradient_clip_val=LIMIT)


class Gan(pl.LightningModule):
    """Two optimizers, moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.g, self.d = nn.Linear(64, 64), nn.Linear(64, 1)
        self.norms: dict[str, list[float]] = {"g": [], "d": []}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(self.d(self.g(batch[0])).square().mean() * 100)
            optimizer.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        name = "g" if optimizer is self.optimizers(use_pl_optimizer=False)[0] else "d"  # type: ignore[index]
        self.norms[name].append(
            torch.nn.utils.get_total_norm([p.grad for p in getattr(self, name).parameters()]).item()
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.g.parameters(), 1e-5), torch.optim.Adam(self.d.parameters(), 1e-5)


def test_each_optimizer_is_clipped_by_its_own_policy_also_by_hand(tmp_path: Path) -> None:
    gan = Gan()
    policies = [MaxNorm(0.25, optimizer="SGD"), MaxNorm(2.0, optimizer="Adam")]
    fit(GradWatch(auto_clip=policies), gan, directory=tmp_path, log_every_n_steps=2)
    assert gan.norms["g"] == pytest.approx([0.25] * len(gan.norms["g"]), rel=1e-4)
    assert gan.norms["d"] == pytest.approx([2.0] * len(gan.norms["d"]), rel=1e-4)
    events = read_events(tmp_path)
    assert set(scalars(events, "gradwatch/SGD/clip_threshold").values()) == {0.25}
    assert set(scalars(events, "gradwatch/Adam/clip_threshold").values()) == {2.0}


@pytest.mark.parametrize("policy", [True, LIMIT, Percentile(5), ZScore(warmup_steps=2)])
def test_what_is_shown_is_what_was_done(tmp_path: Path, policy: Any) -> None:
    _, after = clipped(GradWatch(auto_clip=policy), directory=tmp_path, log_every_n_steps=3)
    events = read_events(tmp_path)
    norms, coefficients = scalars(events, "gradwatch/clipped_norm"), scalars(events, "gradwatch/clip_coefficient")
    before, shares = scalars(events, "gradwatch/total_norm"), scalars(events, "gradwatch/clipped_percent")
    assert list(norms) == [2, 5, 8, 11]
    assert isinstance(policy, ZScore) or min(coefficients.values()) < 1
    for step, norm in norms.items():
        assert norm == pytest.approx(after.norms[step], rel=1e-4)
        assert coefficients[step] * before[step] == pytest.approx(after.norms[step], rel=1e-4)
    if policy == LIMIT:
        assert set(shares.values()) == {100.0}
    low = scalars(events, "gradwatch/total_norm_min")
    assert all(before[step] >= low[step] > 0 for step in before)


def test_the_layers_that_asked_for_it_are_named(tmp_path: Path) -> None:
    policies = [MaxNorm(1e-6, include="net.2"), AGC(clip_factor=1e9)]
    clipped(GradWatch(auto_clip=policies), directory=tmp_path, log_every_n_steps=4)
    events = read_events(tmp_path)
    shares = list(tensors(events, "gradwatch/layers/clipped_fraction").values())
    assert shares == [[0.0, 1.0, 0.0]] * len(shares)
    assert len(shares) > 3
    assert set(scalars(events, "gradwatch/clip_coefficient-2").values()) == {1.0}


def test_numbers_are_those_before_clipping(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        fit(GradWatch(**options), directory=tmp_path / name, max_steps=1, log_every_n_steps=1)
        events = read_events(tmp_path / name)
        tags = ("gradwatch/layers/weight_norm", "gradwatch/layers/zero_fraction", "gradwatch/layers/output_grad_norm")
        return (
            norms_by_step(events),
            [tensors(events, tag) for tag in tags],
            [events.Histograms(f"grad_log10/net.{i}")[0].histogram_value for i in (0, 2, 4)],
        )

    assert run("clipped", auto_clip=1e-3) == run("free")


@pytest.mark.parametrize("policy", ["band", "percentile", "zscore", "adagc", "agc"])
def test_a_resumed_run_clips_bit_by_bit_as_the_uninterrupted_one(tmp_path: Path, policy: Any) -> None:
    batches = list(digits())

    class Replayed(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = super().training_step(batches[self.global_step % len(batches)], batch_idx)
            return loss

    def train(steps: int, resume: Path | None = None) -> tuple[Any, Any]:
        model = Replayed(small_net())
        trainer = quiet_trainer(GradWatch(auto_clip=policy), max_steps=steps)
        trainer.fit(model, digits(), ckpt_path=resume)
        return trainer, model

    path = tmp_path / "half.ckpt"
    train(33)[0].save_checkpoint(path)
    torch.load(path, weights_only=True)
    assert identical(weights(train(60, path)[1]), weights(train(60)[1]))


class Adam(Classifier):  # type: ignore[misc, valid-type]
    """Remembers weights and optimizer state around each step."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__(small_net(), optimizer=torch.optim.Adam, lr=1e-2, weight_decay=0.1, fused=fused)
        self.before: list[Any] = []

    def snapshot(self) -> list[Tensor]:
        states = self.optimizers().state.values()  # type: ignore[union-attr]
        return weights(self) + [v.clone() for state in states for v in state.values()]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.before.append(self.snapshot())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("auto_clip", [None, True])
def test_a_nonfinite_step_can_be_skipped(tmp_path: Path, fused: bool, auto_clip: Any) -> None:
    model = Adam(fused)
    watch = GradWatch(auto_clip=auto_clip, on_nonfinite="skip")
    trainer = quiet_trainer(Poison(4, 7), watch, directory=tmp_path, log_every_n_steps=1)
    trainer.fit(model, digits())
    is_still = [identical(a, b) for a, b in zip(model.before, [*model.before[1:], model.snapshot()], strict=True)]
    assert is_still == [step in (4, 7) for step in range(10)]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    events = read_events(tmp_path)
    assert scalars(events, "gradwatch/skipped_steps")[9] == 2
    assert math.isfinite(scalars(events, "gradwatch/total_norm_max")[9])
    assert [(alert.kind, alert.step) for alert in watch.alerts] == [("nonfinite", 4)]
    (optimizer,) = trainer.optimizers
    assert not hasattr(optimizer, "found_inf")


def test_kept_nonfinite_steps_are_not_touched() -> None:
    seen: list[Tensor] = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 3:
                seen.extend(p.grad.clone() for p in pl_module.parameters())

    for auto_clip in (None, 1e-3):
        pl.seed_everything(0, verbose=False)
        net = small_net()
        callbacks = (Poison(3), GradWatch(auto_clip=auto_clip), Look())
        with pytest.warns(GradWatchWarning, match="NaN or infinite"):
            quiet_trainer(*callbacks, max_steps=4).fit(Classifier(net, lr=0.0), digits())
    free, clipped_ = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(free, clipped_, strict=True))


def test_a_nonfinite_step_can_be_an_error_that_says_why() -> None:
    watch = GradWatch(on_nonfinite="raise", dense_steps=0, sample_every_n_steps=1000)
    trainer = quiet_trainer(Poison(6), watch)
    with (
        pytest.warns(GradWatchWarning, match="NaN or infinite"),
        pytest.raises(GradientAlertError, match="step 6") as failure,
    ):
        trainer.fit(Classifier(small_net()), digits())
    assert trainer.global_step == 6
    assert [alert.kind for alert in failure.value.alerts] == ["nonfinite"]
    assert list(failure.value.alerts) == watch.alerts


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_what_a_loss_scaler_skips_is_left_to_it(tmp_path: Path, on_nonfinite: Any) -> None:
    watch = GradWatch(on_nonfinite=on_nonfinite, auto_clip=True)
    precision = fp16()
    trainer = quiet_trainer(Poison(4), watch, directory=tmp_path, plugins=[precision], log_every_n_steps=1)
    trainer.fit(Classifier(small_net()), digits())
    assert watch.alerts == []
    assert scalars(read_events(tmp_path), "gradwatch/skipped_steps")[9] == 1
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 512.0


def test_clipping_goes_on_when_the_watch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Reader, "sample", broken)
    watch = GradWatch(auto_clip=LIMIT)
    with pytest.warns(GradWatchWarning, match="has switched itself off"):
        model, after = clipped(watch)
    assert after.norms == pytest.approx([LIMIT] * STEPS, rel=1e-3)
    assert close(weights(model), train_by_hand())


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_steps_that_are_not_finite_are_kept_away_when_the_watch_fails(
    monkeypatch: pytest.MonkeyPatch, on_nonfinite: Any
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Reader, "sample", broken)
    model = Classifier(small_net())
    trainer = quiet_trainer(Poison(4), GradWatch(on_nonfinite=on_nonfinite))
    error = pytest.raises(GradientAlertError, match="not finite") if on_nonfinite == "raise" else nullcontext()
    with pytest.warns(GradWatchWarning, match="has switched itself off"), error:
        trainer.fit(model, digits())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert trainer.global_step == (10 if on_nonfinite == "skip" else 4)


def test_a_skipped_step_says_nothing_of_zeros_and_hides_nothing(tmp_path: Path) -> None:
    watch = GradWatch(on_nonfinite="skip", log_every_n_steps=1)
    trainer = quiet_trainer(Poison(9, 14), watch, directory=tmp_path, max_steps=20)
    trainer.fit(Classifier(small_net()), digits())
    events = read_events(tmp_path)
    zeros = tensors(events, "gradwatch/layers/zero_fraction")
    assert list(zeros) == [0, 4, 19]
    assert list(norms_by_step(events)) == list(range(20))
    assert all(min(shares) >= 0 for shares in zeros.values())


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"auto_clip": "percentil"}, {}, r"`auto_clip` must be True, .* but 'percentil' came.*cure"),
    ({"auto_clip": -1.0}, {}, r"`max_norm` must be .* but -1.0 came.*cure"),
    ({"auto_clip": [0.5, None]}, {}, r"`auto_clip` must be .* but None came.*cure"),
    ({"auto_clip": MaxNorm(optimizer="Adm")}, {}, r"`optimizer` must be .* but 'Adm' came.*cure.* SGD"),
    ({"auto_clip": MaxNorm(include="nut.*")}, {}, r"`include` must be .* but 'nut.\*' came.*cure"),
    ({"auto_clip": True}, {"gradient_clip_val": 1.0}, r"`auto_clip` must be None where .*`gradient_clip_val`.*cure"),
    ({"auto_clip": True, "sample_at": "backward"}, {}, r"`sample_at` must be \"step\" to clip.*cure"),
    ({"on_nonfinite": "ignore"}, {}, r"`on_nonfinite` must be .* but 'ignore' came.*cure"),
    ({"on_spike": "raise"}, {}, r"`on_spike` must be .* but 'raise' came.*cure"),
    ({"on_spike": "skip", "sample_at": "backward"}, {}, r"`sample_at` must be \"step\" to clip.*cure"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet_trainer(GradWatch(**arguments), **options).fit(Classifier(small_net()), digits())


def test_lbfgs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"None with LBFGS.*cure"):
        fit(GradWatch(auto_clip=True), Classifier(small_net(), optimizer=torch.optim.LBFGS))


def test_two_clippers_in_a_row_can_be_asked_for() -> None:
    model = Classifier(small_net())
    quiet_trainer(GradWatch(auto_clip=1.0, compose_clipping=True), max_steps=STEPS, gradient_clip_val=LIMIT).fit(
        model, digits()
    )
    assert close(weights(model), train_by_hand())


def test_it_can_be_copied_with_its_policies() -> None:
    watch = copy.deepcopy(GradWatch(auto_clip=[AdaGC(beta=0.9, include="net.*"), "percentile"]))
    assert watch.settings.policies == (AdaGC(beta=0.9, include="net.*"), Percentile())
