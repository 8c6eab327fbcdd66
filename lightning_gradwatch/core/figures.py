"""Raw numbers per parameter, arrived on the host, become figures per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.records import MISSING, Layer

_MAX_TABLE = 2**16
"""Parameters times layers up to which a table says which belongs to which: 512 kB."""


def per_layer(values: Tensor, layer_index: Tensor, num_layers: int) -> Tensor:
    """Sum values of parameters to values of layers.

    Args:
        values: Shape ``(steps, parameters)``.
        layer_index: Layer of each parameter, int64, shape ``(parameters,)``; ``num_layers`` for "not reported".
        num_layers: Number of layers.

    Returns:
        Shape ``(steps, num_layers)``, same dtype. A NaN or inf stays in its own layer.
    """
    return values.new_zeros(len(values), num_layers + 1).index_add_(1, layer_index, values)[:, :num_layers]


def combine(rows: Tensor, layer_index: Tensor, num_layers: int) -> Tensor:
    """Norms per parameter become the total norm and the norms per layer.

    Args:
        rows: Norms per parameter, shape ``(steps, parameters)``; negative for "no gradient".
        layer_index: As for ``per_layer``.
        num_layers: Number of layers.

    Returns:
        Float32, shape ``(steps, 1 + num_layers)``: root of the summed squares over all parameters, then per layer;
        ``-1`` for a layer without any gradient.
    """
    missing = rows < 0
    squares = rows.double().square().masked_fill_(missing, 0)
    has_gradient = per_layer((~missing).double(), layer_index, num_layers) > 0
    layers = per_layer(squares, layer_index, num_layers).sqrt().masked_fill_(~has_gradient, MISSING)
    return torch.cat([squares.sum(1, keepdim=True).sqrt(), layers], dim=1).float()


class LayerFigures:
    """Figures per layer of one optimizer's parameters.

    Args:
        layer_index: Layer of each parameter; ``num_layers`` for "not reported". There are layers without any.
        num_layers: Number of layers.
        sizes: Number of elements of each parameter.
        fan_in: Fan-in of each parameter that is the first matrix of its layer; 0 for the others.
    """

    def __init__(
        self, layer_index: Sequence[int], num_layers: int, sizes: Sequence[int], fan_in: Sequence[float]
    ) -> None:
        self._num_layers = num_layers
        self._layer_index = torch.tensor(layer_index)
        self._sizes = torch.tensor(sizes, dtype=torch.float32)
        self._bare = sorted(set(range(num_layers)) - set(layer_index))
        self._adds: Tensor | None = None
        if len(layer_index) * num_layers <= _MAX_TABLE:
            owns = self._layer_index[:, None] == torch.arange(-1, num_layers)
            owns[:, 0] = True
            self._adds = owns.double()
        self._matrices = [i for i, fan in enumerate(fan_in) if fan and layer_index[i] < num_layers]
        factors = [(fan_in[i] / sizes[i]) ** 0.5 for i in self._matrices]
        self._gain_factor = torch.tensor(factors, dtype=torch.float32)

    def norms(self, rows: Tensor) -> Tensor:
        """``combine`` for these layers, as one product where every parameter has a gradient, and a finite one."""
        if self._adds is not None and len(rows):
            low, high = torch.aminmax(rows)
            if low.item() >= 0 and high.item() < torch.inf:  # NaN is neither
                norms = (rows.double().square_() @ self._adds).sqrt_().float()
                if self._bare:
                    norms[:, [1 + place for place in self._bare]] = MISSING
                return norms
        return combine(rows, self._layer_index, self._num_layers)

    def highest(self, values: Tensor) -> Tensor:
        """The highest of the values of each layer's parameters, none below 0; shape ``(layers,)``.

        ``-1`` for a layer without parameters of its own.
        """
        layers = values.new_zeros(self._num_layers + 1)
        highest = layers.scatter_reduce(0, self._layer_index, values, "amax")[: self._num_layers]
        highest[self._bare] = MISSING
        return highest

    def weight_norms(self, norms: Tensor) -> Tensor:
        """L2 norm of each layer's parameters, shape ``(layers,)``, given those of the parameters."""
        return self.norms(norms[None])[0, 1:]

    def gains(self, norms: Tensor) -> Tensor:
        """Root mean square of each layer's first matrix times the root of its fan-in, ``-1`` without one."""
        gains = torch.full((self._num_layers,), MISSING, dtype=torch.float32)
        gains[self._layer_index[self._matrices]] = (norms[self._matrices] * self._gain_factor).masked_fill(
            norms[self._matrices] < 0, MISSING
        )
        return gains

    def zero_fractions(self, counts: Tensor) -> Tensor:
        """Share of exactly zero gradient elements per layer, in [0, 1], shape ``(layers,)``; ``-1`` for no gradient.

        Args:
            counts: Number of elements of each parameter's gradient that are not zero; ``-1`` for no gradient.
        """
        sizes = self._sizes.masked_fill(counts < 0, 0)
        sums = per_layer(torch.stack([counts.clamp(min=0), sizes]), self._layer_index, self._num_layers)
        return torch.where(sums[1] > 0, 1 - sums[0] / sums[1], MISSING)


class Arrangement:
    """The order in which layers ran, for tensors with one entry per layer as registered.

    Args:
        layers: The layers as registered.
        places: Indices into them.

    Attributes:
        layers: The layers in the order in which they ran.
    """

    def __init__(self, layers: Sequence[Layer], places: Sequence[int]) -> None:
        self.layers = tuple(layers[place] for place in places)
        is_same = list(places) == list(range(len(layers)))
        self._index = None if is_same else torch.tensor(places)
        self._columns = None if is_same else torch.tensor([0, *(1 + place for place in places)])

    def __len__(self) -> int:
        return len(self.layers)

    def rows(self, values: Tensor) -> Tensor:
        """Bring values of shape ``(layers, ...)`` into this order."""
        return values if self._index is None else values.index_select(0, self._index)

    def columns(self, norms: Tensor) -> Tensor:
        """Bring the layers' norms, which come after the total norm, into this order; shape ``(steps, 1 + layers)``."""
        return norms if self._columns is None else norms.index_select(1, self._columns)


def complement(shares: Tensor) -> Tensor:
    """The other part of shares in [0, 1]; what is unknown stays so."""
    return torch.where(shares < 0, MISSING, 1 - shares)


def update_figures(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Update relative to the weights, and share of weights that ignored it, from the sums of an ``UpdateMeter``.

    Args:
        sums: Squared change, squared weight, elements pushed, elements stuck; shape ``(4, layers)``.

    Returns:
        Two tensors of shape ``(layers,)``; ``-1`` for unknown.
    """
    moved, size, pushed, stuck = sums
    ratio = torch.where(size > 0, (moved / size).sqrt(), MISSING)
    return ratio, torch.where(pushed > 0, stuck / pushed, MISSING)


def moment_figures(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Share of elements below Adam's ``eps``, and mean squared first over second moment.

    Args:
        sums: Number of elements with a second moment, number of those below ``eps``, sum of the quotients; shape
            ``(3, layers)``.

    Returns:
        Two tensors of shape ``(layers,)``; ``-1`` for unknown.
    """
    count, below, signal = sums
    return torch.where(count > 0, below / count, MISSING), torch.where(count > 0, signal / count, MISSING)
