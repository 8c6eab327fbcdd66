"""Which of a model's layers a probe hooks."""

from __future__ import annotations

from torch import nn

from lightning_gradwatch.core import engines
from lightning_gradwatch.core.layers import own_parameters, owns_matrix, uncompiled_layers
from lightning_gradwatch.core.modules import modules
from lightning_gradwatch.core.probe import Probe


def make_probe(model: nn.Module) -> Probe:
    """A probe on the layers of ``model`` that can be hooked: those that torch.compile has not taken over."""
    return Probe(*hookable(model))


def hookable(model: nn.Module) -> tuple[dict[str, nn.Module], list[str], list[str], list[str]]:
    """The layers to hook; the names of those that own a matrix; of these, those that are recurrent; and the fused."""
    layers, cuts = uncompiled_layers(model), engines.cuts(model)
    matrices = [name for name, module in layers.items() if owns_matrix(module, own_parameters(module), cuts)]
    recurrent = [name for name in matrices if isinstance(layers[name], nn.RNNBase)]
    encoders = [module for module in modules(model) if isinstance(module, nn.TransformerEncoderLayer)]
    inside = {id(part) for encoder in encoders for part in modules(encoder)}
    return layers, matrices, recurrent, [name for name, module in layers.items() if id(module) in inside]
