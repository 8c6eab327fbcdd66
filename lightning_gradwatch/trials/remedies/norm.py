"""Normalisation between layers, before the activation.

Sources: Ioffe & Szegedy, ICML 2015 (BatchNorm). Ba et al., 2016 (LayerNorm). Wu & He, ECCV 2018 (GroupNorm).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import (
    Trace,
    is_activation,
    is_product,
    is_trained,
    paths,
    perform,
    trace,
)

_BODY = """
    m.norm = norms[type(m)](len(m.weight)).to(m.weight)
    m.register_forward_hook(lambda m, x, y: m.norm(y))"""
_CAUSES: frozenset[Cause] = frozenset(
    {"saturating_activation", "small_init", "large_init", "no_skip_or_norm", "input_scale", "dead_relu"}
)
_KINDS: frozenset[AlertKind] = frozenset({"vanishing", "exploding"})


def _normalise(norms: str) -> Callable[[TrialModel], None]:
    def apply(trial_model: TrialModel) -> None:
        seen = trace(trial_model)
        chosen = [m for m in seen.ran(_LAYERS) if is_trained(m) and not hasattr(m, "norm") and _fits(seen, m, norms)]
        if not chosen:
            raise CannotApply("no hidden layer that it fits and that is not normalised yet")
        perform(trial_model, f"{norms}\nfor m in map(model.get_submodule, {paths(trial_model.model, chosen)}):{_BODY}")

    return apply


def _fits(seen: Trace, module: Any, norms: str) -> bool:
    calls = seen.of(module)
    made = calls[0].made
    if type(module) not in _LAYERS or made is None or not all(_is_bare(seen, call.after) for call in calls):
        return False
    if isinstance(module, nn.Linear) and norms is _LAYER_NORMS:
        return True
    has_batch = made.ndim == module.weight.ndim and made.numel() > made.shape[1]
    return has_batch and (norms is _LAYER_NORMS or not seen.is_loop(module))  # statistics differ from step to step


def _is_bare(seen: Trace, node: Any) -> bool:
    """Whether a hidden layer's output goes straight to activations or further layers."""
    readers = [] if node is None or node in seen.tail else seen.readers(node)
    return bool(readers) and all(is_activation(reader) or is_product(reader) for reader in readers)


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = """norms = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d}
norms |= {nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}"""
_LAYER_NORMS = """group = lambda n: nn.GroupNorm(1, n)
norms = {nn.Linear: nn.LayerNorm, nn.Conv1d: group, nn.Conv2d: group, nn.Conv3d: group}"""


REMEDIES = tuple(
    Remedy(f"norm.{variant}", f"{name} before the activations", "", _normalise(norms), _CAUSES, _KINDS)
    for variant, name, norms in (("batch", "BatchNorm", _BATCH_NORMS), ("layer", "LayerNorm", _LAYER_NORMS))
)
