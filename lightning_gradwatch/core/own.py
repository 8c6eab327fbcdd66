"""Quantities of the user's own, measured layer by layer on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.optional import OptionalFigures, OwnFigure
from lightning_gradwatch.core.quantities.own import declare
from lightning_gradwatch.core.quantities.quantity import LayerQuantity
from lightning_gradwatch.core.records import MISSING

PREFIX = "own "
"""Before the name of a quantity, among the numbers that are carried to the host."""


class OwnMeter:
    """Measures what the user has asked for besides; a quantity that fails is left out from then on.

    Args:
        quantities: What to measure.
        optional: Leaves out what fails.

    Attributes:
        declared: What the quantities are.
        names: Their names among the numbers that are carried to the host.

    Raises:
        ValueError: If one of them is none, or its name is taken.
    """

    def __init__(self, quantities: Sequence[LayerQuantity], optional: OptionalFigures) -> None:
        self.declared = declare("quantities", list(quantities))
        self.names = [f"{PREFIX}{quantity.name}" for quantity in self.declared]
        self._quantities = quantities
        self._take = optional.take

    def measure(self, instruments: Instruments, scale: Tensor | None) -> dict[str, Tensor]:
        """Every quantity of every layer, shape ``(layers,)`` each, float32; ``scale`` is still in the gradients."""
        if not self._quantities:
            return {}
        unknown = instruments.unknown(len(instruments.layer_names))
        return {
            name: self._take(_figure(own.name), unknown, _measure, own.measure, instruments, scale)
            for name, own in zip(self.names, self._quantities, strict=True)
        }

    def checked(self, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What has arrived on the host, by the names of the quantities, without what is not what it should be."""
        named = zip(self.names, self._quantities, strict=True)
        here = {own.name: numbers[name] for name, own in named if name in numbers}
        checked = {name: self._take(_figure(name), None, _checked, values) for name, values in here.items()}
        return {name: values for name, values in checked.items() if values is not None}


def _figure(name: str) -> OwnFigure:
    return OwnFigure("quantity", name)


Measure = Callable[[list[Tensor], list[Tensor]], Tensor]


def _measure(measure: Measure, instruments: Instruments, scale: Tensor | None) -> Tensor:
    """The numbers of all layers, one layer after the other, so that no more than one is held unscaled.

    Raises:
        RuntimeError: If a gradient has been changed.
    """
    if instruments.shards.is_spread:
        raise ValueError("a rank holds only parts of these parameters")
    owned: list[list[Tensor]] = [[] for _ in instruments.layer_names]
    for parameter, place in zip(instruments.layout.parameters, instruments.layout.layer_index, strict=True):
        if parameter.grad is not None and place < len(owned):
            owned[place].append(parameter)
    return instruments.meter.stack([_of_layer(measure, parameters, scale) for parameters in owned]).float()


def _of_layer(measure: Measure, parameters: Sequence[Tensor], scale: Tensor | None) -> Tensor | None:
    """The number of one layer; None without a gradient."""
    if not parameters:
        return None
    gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
    if scale is not None:
        gradients = [gradient / scale.to(gradient.device) for gradient in gradients]
    weights = [parameter.detach() for parameter in parameters]
    given = [*weights, *gradients]
    before = [tensor._version for tensor in given]
    number = _number(measure(list(weights), list(gradients)))
    if before != [tensor._version for tensor in given]:
        raise RuntimeError("`measure` has changed a weight or a gradient in place")
    return number


def _number(measured: object) -> Tensor:
    if not isinstance(measured, Tensor) or measured.shape != ():
        came = f"shape {tuple(measured.shape)}" if isinstance(measured, Tensor) else type(measured).__name__
        raise TypeError(f"`measure` must return a tensor of shape (), but {came} came")
    return measured.detach().float()


def _checked(values: Tensor) -> Tensor | None:
    """None where it was left out on the device.

    Raises:
        ValueError: If there is a negative number, which stands for none.
    """
    if bool(((values < 0) & (values != MISSING)).any()):
        raise ValueError("`measure` must not return negative numbers: -1 stands for none")
    return None if bool((values == MISSING).all()) else values
