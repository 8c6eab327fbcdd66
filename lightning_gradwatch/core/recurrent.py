"""Whether the data that a recurrent layer reads can be asked for a gradient, and nobody could tell."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_gradwatch.core.modules import facts_of, parameters_of
from lightning_gradwatch.core.tensors import tensors_in

_READS_INPUT = ("__call__", "_call_impl", "forward", "check_input", "check_forward_args", "get_expected_hidden_size")
"""Methods of recurrent layers that are given the input."""
_TRUSTED = ("torch.nn.modules.", "lightning_gradwatch.")
"""Modules whose code changes no input; a remedy that is tried has its own kind of recurrent layer."""
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # from 2.8 on


def readable(module: nn.Module, given: object, are_alone: Callable[[nn.Module], bool]) -> Tensor | None:
    """The data that a recurrent layer is given, if its gradient can be looked at.

    Args:
        module: The layer.
        given: Its first argument.
        are_alone: Tells whether no hook of others is called with what a module is given or with its gradients.

    Returns:
        A tensor that has a gradient, or plain data that may be asked for one; None for all else.
    """
    if not torch.is_grad_enabled() or not isinstance(given, (Tensor, PackedSequence)):
        return None
    data = given.data if isinstance(given, PackedSequence) else given
    if not data.is_floating_point() or next(tensors_in(data), None) is not data:
        return None
    is_free = data.requires_grad or (_asks_for_nothing_else(module, data) and are_alone(module))
    return data if is_free else None


def _asks_for_nothing_else(module: nn.Module, data: Tensor) -> bool:
    """Whether a recurrent layer is torch's code (or ours) from end to end, and would only add a gradient to plain data.

    Not where a gradient is of no use, or where others count what the graph saves (activation checkpointing) or follow
    the data through it (forward-mode derivatives).
    """
    kind, own = type(module), facts_of(module)
    return (
        all(getattr(kind, name).__module__.startswith(_TRUSTED) for name in _READS_INPUT)
        and not any(name in own for name in _READS_INPUT)
        and type(data) is Tensor
        and not data.is_inference()
        and any(p.requires_grad for p in parameters_of(module).values())
        and _saved_tensors_hooks(True) is None
        and torch.autograd.forward_ad._current_level < 0
    )
