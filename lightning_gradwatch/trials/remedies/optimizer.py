"""The optimizer's settings.

Sources: Goyal et al., arXiv:1706.02677, 2017 (warm-up). Kingma & Ba, ICLR 2015 (eps). Loshchilov & Hutter, ICLR 2019
(weight decay).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.trials.model import Remedy, TrialModel

WARMUP_STEPS = 100
_TOO_HIGH: tuple[frozenset[Cause], frozenset[AlertKind]] = (
    frozenset({"learning_rate", "normalisation_order", "dead_relu", "cliff", "large_init"}),
    frozenset({"exploding", "nonfinite", "dead"}),
)
_TOO_LOW: tuple[frozenset[Cause], frozenset[AlertKind]] = frozenset(), frozenset({"stalled"})


def _set(**settings: Any) -> Callable[[TrialModel], None]:
    def apply(trial_model: TrialModel) -> None:
        for name, value in settings.items():
            setattr(trial_model, name, value)

    return apply


def _rate(variant: str, name: str, factor: float, when: tuple[frozenset[Cause], frozenset[AlertKind]]) -> Remedy:
    code = f'for group in optimizer.param_groups:  # in configure_optimizers\n    group["lr"] *= {factor:g}'

    def apply(trial_model: TrialModel) -> None:
        trial_model.lr_scale *= factor

    return Remedy(f"lr.{variant}", name, code, apply, *when)


def _group(key: str, name: str, setting: str, value: float, cause: Cause, kinds: frozenset[AlertKind]) -> Remedy:
    code = f'for group in optimizer.param_groups:  # in configure_optimizers\n    group["{setting}"] = {value:g}'
    return Remedy(
        key, name, code, _set(**{"adam_eps" if setting == "eps" else setting: value}), frozenset({cause}), kinds
    )


REMEDIES = (
    _rate("tenth", "a tenth of the learning rate", 0.1, _TOO_HIGH),
    _rate("hundredth", "a hundredth of the learning rate", 0.01, _TOO_HIGH),
    _rate("thousandth", "a thousandth of the learning rate", 0.001, _TOO_HIGH),
    _rate("x10", "ten times the learning rate", 10.0, _TOO_LOW),
    _rate("x1000", "a thousand times the learning rate", 1e3, _TOO_LOW),
    _rate("x100000", "a hundred thousand times the learning rate", 1e5, _TOO_LOW),
    Remedy(
        "lr.warmup",
        f"a warm-up of {WARMUP_STEPS} steps",
        f"rise = lambda step: min(1.0, (step + 1) / {WARMUP_STEPS})\n"
        "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rise)  # one step() per optimizer step",
        _set(warmup_steps=WARMUP_STEPS),
        frozenset({"normalisation_order", "learning_rate"}),
        frozenset({"exploding"}),
    ),
    _group("weight_decay.zero", "no weight decay", "weight_decay", 0.0, "weight_decay", frozenset()),
    _group("adam_eps.small", "a smaller eps of Adam", "eps", 1e-15, "adam_eps", frozenset()),
)
