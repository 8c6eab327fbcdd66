"""What things are called stands once, in Python: complete, served to the browser, and nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from lightning_gradwatch.cli.logs import Logs
from lightning_gradwatch.core.quantities import QUANTITIES, RESERVED
from lightning_gradwatch.core.quantities.several import SEVERAL
from lightning_gradwatch.core.records import AlertKind
from lightning_gradwatch.reading import tables
from lightning_gradwatch.reading.store import Catalogue
from lightning_gradwatch.reading.tables import CELLS, KINDS, LINES, PARTICULAR, STATUSES, VIRIDIS

PACKAGE = Path(tables.__file__).parents[1]
SCRIPTS = [*PACKAGE.glob("tensorboard/static/*.js"), *PACKAGE.glob("cli/page/*.js")]
NAMES = {*(quantity.name for quantity in QUANTITIES), *SEVERAL}
TAGS = ("gradwatch/", "grad_norm/", "grad_log10/")
_COMMENT = re.compile(r"/\*.*?\*/|^\s*//.*?$", re.DOTALL | re.MULTILINE)
_LITERAL = re.compile(r""""[^"\n]*"|'[^'\n]*'|`[^`]*`""")


def literals(source: str) -> list[str]:
    """The texts in a script, without its comments."""
    return [found[1:-1].lower() for found in _LITERAL.findall(_COMMENT.sub("", source))]


def words() -> set[str]:
    """Everything that is said to people. A status is also a name, which is no copy of its word."""
    quantities = {text for q in QUANTITIES for text in (q.label, q.missing, q.hint)}
    kinds = {text for kind in KINDS.values() for text in (kind.title, kind.label)}
    statuses = {word for name, word in STATUSES.items() if word != name}
    return quantities | kinds | statuses | set(CELLS.values()) | {line.label for line in LINES}


def copies(source: str) -> list[str]:
    """The words that stand in a script, too, and the names of quantities and the tags that do."""
    texts = literals(source)
    found = [word for word in words() if any(word.lower() in text for text in texts)]
    return found + [text for text in texts if text in NAMES or text.startswith(TAGS)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_browser_has_no_words_of_its_own(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    assert copies(source) == []
    assert not re.search(r"\[\s*{}\s*,\s*{}\s*,\s*{}\s*\]".format(*VIRIDIS[0]), source)


def test_the_check_sees_a_copy() -> None:
    assert copies('const TITLES = { dead: "Layers without any gradient" };')
    assert copies("const label = `gradient norm: ${value}`;")
    assert copies('if (name === "zero_fraction") return;')
    assert copies("const tag = `grad_norm/${layer}`;")
    assert not copies("/** Gradient norm */ const x = 1;")


def test_every_alert_kind_and_every_status_has_words() -> None:
    assert set(KINDS) == set(get_args(AlertKind))
    assert set(STATUSES) == set(get_args(tables.Status))


def catalogues(logs: Path) -> list[Catalogue]:
    """What the event files of all runs hold."""
    return [run.catalogue for run in Logs(logs).reload() if run.catalogue is not None]


def test_what_a_log_holds_of_every_layer_can_be_shown(logs: Path) -> None:
    found = {
        quantity
        for catalogue in catalogues(logs)
        for optimizer, versions in catalogue.optimizers.items()
        for version in versions
        for quantity in catalogue.of(optimizer, version)
    }
    assert found - set(SEVERAL) == {quantity.name for quantity in QUANTITIES}


def test_the_lines_are_numbers_of_the_run(logs: Path) -> None:
    tags = {tag for catalogue in catalogues(logs) for tag in catalogue.scalars}
    assert {f"gradwatch/{line.name}" for line in LINES} <= tags


def test_the_tables_are_plain_json() -> None:
    served = json.loads(json.dumps(tables.encode(), allow_nan=False))
    assert list(served["quantities"]) == [quantity.name for quantity in QUANTITIES]


def test_what_is_shown_first_is_offered_first() -> None:
    assert PARTICULAR["default"] == QUANTITIES[0].name
    assert set(PARTICULAR.values()) <= RESERVED
