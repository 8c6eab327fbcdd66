"""A quantity is declared once: files, tuple, schema, tables and docs agree."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from lightning_gradwatch.core import quantities
from lightning_gradwatch.core.quantities import BY_NAME, QUANTITIES, RESERVED
from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.own import MAX_NAME
from lightning_gradwatch.core.quantities.quantity import SCALES, Quantity
from lightning_gradwatch.core.quantities.several import SEVERAL
from lightning_gradwatch.reading import tables
from lightning_gradwatch.reading.schema import Description

ROOT = Path(__file__).parents[3]
NUMBERS = (ROOT / "docs" / "reading" / "numbers.md").read_text(encoding="utf-8")
ids = [quantity.name for quantity in QUANTITIES]


def test_every_file_declares_one_quantity_of_the_tuple_and_has_a_test() -> None:
    declared = []
    for module in iter_modules(quantities.__path__):
        found = import_module(f"{quantities.__name__}.{module.name}")
        own = [value for name, value in vars(found).items() if isinstance(value, Quantity)]
        assert len(own) <= 1, module.name
        if own:
            declared += own
            assert (Path(__file__).parent / f"test_{module.name}.py").exists()
    assert sorted(quantity.name for quantity in declared) == sorted(ids)


def test_names_and_labels_are_unique_and_the_gradient_norm_comes_first() -> None:
    assert QUANTITIES[0] is GRAD_NORM
    assert len(BY_NAME) == len({quantity.label for quantity in QUANTITIES}) == len(QUANTITIES)
    assert not set(BY_NAME) & set(SEVERAL)
    assert {*BY_NAME, *SEVERAL} < RESERVED


@pytest.mark.parametrize("quantity", QUANTITIES, ids=ids)
def test_a_quantity_is_complete(quantity: Quantity) -> None:
    assert quantity.name.isidentifier()
    assert len(quantity.name) <= MAX_NAME
    assert quantity.scale in SCALES
    assert quantity.label
    assert quantity.hint
    assert quantity.missing
    assert quantity.take is not None


@pytest.mark.parametrize("quantity", QUANTITIES, ids=ids)
def test_the_tables_serve_what_is_declared_in_its_order(quantity: Quantity) -> None:
    served = tables.encode()["quantities"]
    assert isinstance(served, dict)
    assert list(served) == ids
    assert served[quantity.name] == {"name": quantity.name, **quantity.words()}


@pytest.mark.parametrize("name", [*BY_NAME, *SEVERAL])
def test_what_is_built_in_does_not_say_what_it_is(name: str) -> None:
    """So that its description is that of every version, and a log cannot rename it."""
    content = Description(name, layers=("a",)).encode()
    assert set(json.loads(content)) == {"schema", "quantity", "optimizer", "version", "layers"}
    words = {**GRAD_NORM.words(), "label": "Renamed"}
    renamed = Description.decode(json.dumps({**json.loads(content), "declaration": words}).encode())
    assert renamed.declaration is None
    assert renamed.shown_as is BY_NAME.get(name)


@pytest.mark.parametrize("quantity", QUANTITIES, ids=ids)
def test_a_quantity_has_a_line_in_docs(quantity: Quantity) -> None:
    assert any(f"`{quantity.name}`" in line and quantity.label in line for line in NUMBERS.splitlines())
