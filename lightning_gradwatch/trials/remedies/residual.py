"""Residual connections where shapes allow: the gradient has a way around each layer.

Source: He et al., CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import MATRIX, Trace, is_trained, paths, perform, trace

_CODE = """for m in map(model.get_submodule, {}):
    m.register_forward_hook(lambda m, x, y: x[0] + y)"""
_CAUSES: frozenset[Cause] = frozenset({"no_skip_or_norm", "small_init", "saturating_activation"})
_KINDS: frozenset[AlertKind] = frozenset({"vanishing"})


def _bypass(choose: Callable[[Trace], list[nn.Module]]) -> Callable[[TrialModel], None]:
    def apply(trial_model: TrialModel) -> None:
        seen = trace(trial_model)
        num_layers = len(seen.ran(MATRIX))
        if seen.num_skips > num_layers / 6:
            raise CannotApply("there are skip connections already")
        chosen = choose(seen)
        if len(chosen) < 2:
            raise CannotApply("no two of them with equal shapes at input and output")
        perform(trial_model, _CODE.format(paths(trial_model.model, chosen)))

    return apply


def _fits(seen: Trace, module: nn.Module) -> bool:
    """Whether a hidden module that is trained keeps the shape of its one tensor."""
    return is_trained(module) and all(
        call.args
        and call.given is call.args[0]
        and call.made is not None
        and call.made is not call.given
        and call.given.shape == call.made.shape
        and call.before is not None
        and call.after not in seen.tail
        for call in seen.of(module)
    )


def _layers(seen: Trace) -> list[nn.Module]:
    return [module for module in seen.ran(MATRIX) if _fits(seen, module)]


def _blocks(seen: Trace) -> list[nn.Module]:
    """The smallest modules of two layers or more."""
    matrices = set(seen.ran(MATRIX))
    fitting = [m for m in seen.ran((nn.Module,)) if len(matrices & set(m.modules())) > 1 and _fits(seen, m)]
    return [m for m in fitting if not any(other in set(m.modules()) for other in fitting if other is not m)]


REMEDIES = tuple(
    Remedy(f"residual.{what}", f"residual connections around {what}", "", _bypass(choose), _CAUSES, _KINDS)
    for what, choose in (("layers", _layers), ("blocks", _blocks))
)
