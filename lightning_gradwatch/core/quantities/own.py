"""Quantities of the user's own: refused or declared, so that a log can say what they are."""

from __future__ import annotations

import re

from lightning_gradwatch.core._check import is_list, refuse
from lightning_gradwatch.core.quantities import RESERVED
from lightning_gradwatch.core.quantities.quantity import SCALES, WORDS, LayerQuantity, Quantity

MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")


def declare(argument: str, quantities: object) -> tuple[Quantity, ...]:
    """The declarations of quantities of the user's own, for ``Snapshot.declared``.

    Args:
        argument: What the user calls the list of them, for the error.
        quantities: A list of what keeps to ``LayerQuantity``.

    Raises:
        ValueError: If it is no list, or one of them lacks something, or its name is taken or cannot be part of a tag.
    """
    if not is_list(quantities):
        raise refuse(argument, "a list of quantities", quantities, f"{argument}=[MyQuantity()]")
    found: list[Quantity] = []
    for place, own in enumerate(quantities):
        quantity = _declaration(f"{argument}[{place}]", own)
        if quantity.name in {other.name for other in found}:
            raise refuse(f"{argument}[{place}].name", "a name of its own", quantity.name, "give each another name")
        found.append(quantity)
    return tuple(found)


def _declaration(argument: str, own: LayerQuantity) -> Quantity:
    """One quantity, checked."""
    for field in ("name", *WORDS):
        text = getattr(own, field, None)
        if not isinstance(text, str) or (field in ("name", "label") and not text):
            raise refuse(f"{argument}.{field}", "a text", text, f"give the quantity the attribute `{field}`")
    if not callable(getattr(own, "measure", None)):
        cure = "give it a method `measure(weights, gradients)` that returns a tensor of shape ()"
        raise refuse(argument, "something that can measure", own, cure)
    if isinstance(own, type):
        raise refuse(argument, "an instance, not a class", own, f"write {own.__name__}()")
    if own.name in RESERVED:
        raise refuse(f"{argument}.name", "a name that GradWatch does not use itself", own.name, "choose another one")
    if not _NAME.fullmatch(own.name):
        rule = f"a letter and then at most {MAX_NAME - 1} letters, digits, '_', '.' or '-'"
        raise refuse(f"{argument}.name", rule, own.name, 'for example "gradient_sign"')
    if own.scale not in SCALES:
        rule = f"one of {', '.join(map(repr, SCALES))}"
        raise refuse(f"{argument}.scale", rule, own.scale, '"log" suits sizes, "fraction" shares from 0 to 1')
    return Quantity(own.name, own.label, own.hint, own.scale, own.missing, own.unit)
