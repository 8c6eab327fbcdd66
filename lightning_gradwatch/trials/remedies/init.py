"""Initialisations: the variance of signals and gradients is kept from layer to layer.

Sources: Glorot & Bengio, AISTATS 2010 (Xavier). He et al., ICCV 2015. Saxe et al., ICLR 2014 (orthogonal).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import MATRIX, kind_of, paths, perform, trace

_LAYERS = (*MATRIX, nn.MultiheadAttention)
_CAUSES: frozenset[Cause] = frozenset(
    {
        "small_init",
        "large_init",
        "cliff",
        "no_skip_or_norm",
        "weight_decay",
        "dead_relu",
        "saturated_output",
        "saturating_activation",
    }
)
_KINDS: frozenset[AlertKind] = frozenset({"vanishing", "exploding", "dead"})
_ALL = """for m in model.modules():
    if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)):
        for p in m.parameters(recurse=False):
            {}"""
_SOME = """for m in map(model.get_submodule, {}):
    for p in m.parameters(recurse=False):
        {}"""
_WEIGHTS = "nn.init.zeros_(p) if p.ndim < 2 else nn.init."
_LOSS = "  # starts from scratch"
HE = f'{_WEIGHTS}kaiming_normal_(p, nonlinearity="relu"){_LOSS}'
XAVIER = f"{_WEIGHTS}xavier_uniform_(p){_LOSS}"
_BIASES = "p.ndim < 2 and nn.init.zeros_(p)"


def drawable(model: nn.Module) -> list[nn.Module]:
    """The linear and convolutional layers that may be drawn anew.

    Frozen, shared with an embedding, reparametrised and all-zero weights may not: the last are meant to start at zero.

    Raises:
        CannotApply: If there is none.
    """
    shared = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    found = []
    for module in model.modules():
        own = list(module.parameters(recurse=False)) if isinstance(module, _LAYERS) else []
        is_plain = not hasattr(module, "weight_g") and not hasattr(module, "parametrizations")
        if own and is_plain and all(p.requires_grad and not is_lazy(p) and id(p) not in shared for p in own):
            found += [module] if all(p.any() for p in own if p.ndim > 1) else []
    if not found:
        raise CannotApply("no linear or convolutional layer that is trained and not reparametrised")
    return found


def reinitialise(trial_model: TrialModel, line: str) -> None:
    """Draw weights anew and clear biases, by a line of code for each parameter ``p`` of a layer ``m``."""
    chosen = drawable(trial_model.model)
    if any(getattr(m, "transposed", False) for m in chosen):
        mode = '(p, mode="fan_out" if getattr(m, "transposed", False) else "fan_in", nonlinearity'
        line = line.replace("(p, nonlinearity", mode)
    if len(chosen) == sum(isinstance(m, _LAYERS) for m in trial_model.model.modules()):
        perform(trial_model, _ALL.format(line))
    else:
        perform(trial_model, _SOME.format(paths(trial_model.model, chosen), line))


def _orthogonal(trial_model: TrialModel) -> None:
    squashing = (nn.Tanh, nn.Sigmoid, nn.Softsign, nn.Hardtanh)
    try:
        seen = trace(trial_model)
        saturates = any(kind_of(n) in ("tanh", "sigmoid", "hardtanh") for n in seen.consumers if n not in seen.tail)
    except CannotApply:
        saturates = any(type(m) in squashing for m in trial_model.model.modules())
    gain = "" if saturates else ", 2**0.5"
    reinitialise(trial_model, f"{_WEIGHTS}orthogonal_(p{gain}){_LOSS}")


def _zero_biases(trial_model: TrialModel) -> None:
    if not any(p.any() for m in drawable(trial_model.model) for p in m.parameters(recurse=False) if p.ndim < 2):
        raise CannotApply("no bias of a trained layer that is not zero")
    reinitialise(trial_model, _BIASES)


def _initialisation(variant: str, name: str, line: str, apply: Callable[[TrialModel], None] | None = None) -> Remedy:
    apply = apply or (lambda trial_model: reinitialise(trial_model, line))
    return Remedy(f"init.{variant}", f"{name} initialisation", _ALL.format(line), apply, _CAUSES, _KINDS)


REMEDIES = (
    _initialisation("he", "He", HE),
    _initialisation("xavier", "Xavier", XAVIER),
    _initialisation(
        "orthogonal", "orthogonal", _WEIGHTS + "orthogonal_(p, 2**0.5)  # for ReLU; 1 for tanh", _orthogonal
    ),
    Remedy(
        "init.zero_bias",
        "biases back to zero",
        _ALL.format(_BIASES),
        _zero_biases,
        frozenset({"dead_relu", "saturated_output", "cliff"}),
        frozenset({"dead"}),
    ),
)
