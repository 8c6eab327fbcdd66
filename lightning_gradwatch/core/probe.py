"""The norm of dLoss/d(output) of every layer, taken by tensor hooks that exist on sampled steps only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Probe:
    """Watches the outputs of a model's layers between :meth:`attach` and :meth:`detach`.

    Tensor hooks instead of module backward hooks: these break ``ReLU(inplace=True)`` and graphs of ``torch.compile``.

    Args:
        layers: The modules whose order is to be known, by name.
        profiled: Names of those whose output gradients are measured.

    Attributes:
        order: Names of the layers in the order in which their first forward call ended.
    """

    def __init__(self, layers: Mapping[str, nn.Module], profiled: Collection[str]) -> None:
        self._layers = dict(layers)
        self._profiled = frozenset(profiled)
        self._handles: list[RemovableHandle] = []
        self._norms: dict[str, Tensor] = {}
        self.order: list[str] = []

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def attach(self) -> None:
        """Put the hooks in place, unless they are, and start from nothing."""
        if not self._handles:
            self._norms = {}
            names = self._profiled if self.order else self._layers
            self._handles = [self._layers[name].register_forward_hook(self._make_hook(name)) for name in names]

    def detach(self) -> None:
        """Remove every hook and forget what was seen; safe to call at any time."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._norms = {}

    def clear(self) -> None:
        """Forget what was seen; the hooks stay."""
        self._norms = {}

    def norm(self, layer: str) -> Tensor | None:
        """L2 norm of dLoss/d(output), summed in squares over repeated calls. Shape ``()``, float32; None if unseen."""
        return self._norms.get(layer)

    def _make_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see_gradient(gradient: Tensor) -> None:
            norm = torch.linalg.vector_norm(gradient.detach(), dtype=_accumulation_dtype(gradient)).float()
            before = self._norms.get(name)
            self._norms[name] = norm if before is None else torch.hypot(before, norm)

        def see_output(module: nn.Module, args: Any, output: Any) -> None:
            if name not in self.order:
                self.order.append(name)
            tensor = first_differentiable(output) if name in self._profiled else None
            if tensor is not None:
                tensor.register_hook(see_gradient)

        return see_output


def _accumulation_dtype(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)


def first_differentiable(output: object) -> Tensor | None:
    """The first tensor that requires a gradient in a tensor, tuple, list, dict or dataclass, depth first."""
    if isinstance(output, Tensor):
        return output if output.requires_grad else None
    if isinstance(output, Mapping):
        output = output.values()
    elif hasattr(output, "__dataclass_fields__"):
        output = vars(output).values()
    elif not isinstance(output, (tuple, list)):
        return None
    return next((found for part in output if (found := first_differentiable(part)) is not None), None)
