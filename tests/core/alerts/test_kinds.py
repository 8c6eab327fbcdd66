"""Every kind of alert is declared once, and wherever kinds are listed each is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.zoo import CASES
from lightning_gradwatch.core import alerts
from lightning_gradwatch.core.alerts import ALERTS, KINDS, Kind
from lightning_gradwatch.core.detector import Detector
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import AlertKind
from lightning_gradwatch.reading import tables

PACKAGE = Path(alerts.__file__).parent
PAGES = Path(__file__).parents[3] / "docs" / "alerts"
IDS = [kind.name for kind in ALERTS]


def test_no_kind_is_missing_anywhere() -> None:
    assert sorted(IDS) == sorted(get_args(AlertKind)) == sorted(tables.KINDS) == sorted(KINDS)
    assert len({*IDS}) == len(ALERTS)


@pytest.mark.parametrize("kind", ALERTS, ids=IDS)
def test_a_kind_is_whole_and_stands_in_a_file_of_its_own(kind: Kind) -> None:
    assert all((kind.title, kind.label, kind.unit))
    assert len([other for other in ALERTS if kind.title == other.title or kind.label == other.label]) == 1
    assert len([other for other in ALERTS if kind.rule is other.rule]) == 1
    source = (PACKAGE / f"{kind.name}.py").read_text(encoding="utf-8")
    assert source.count(" = Kind(\n") == source.count(f'name="{kind.name}"') == 1


@pytest.mark.parametrize("kind", ALERTS, ids=IDS)
def test_a_kind_has_a_test_of_its_own_a_page_in_docs_and_a_case_in_the_zoo(kind: Kind) -> None:
    assert (Path(__file__).parent / f"test_{kind.name}.py").exists()
    name = kind.name.replace("_", "-")
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name.replace('-', ' ')}\n")
    assert "**Opens when**" in page
    headings = ["When it opens", "Causes", "What to do", "When it is wrong"]
    assert re.findall(r"^## (.+)$", page, re.MULTILINE)[:4] == headings
    assert f"](../pictures/{kind.name}_light.png)" in page
    row = rf"^\| \[`{kind.name}`\]\({name}\.md\) \| {re.escape(kind.title)} \| .+ \| {re.escape(kind.unit)} \|$"
    assert re.search(row, (PAGES / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(kind.name in case.required for case in CASES.values())


def test_no_two_rules_share_a_score_or_a_place_in_the_state() -> None:
    history, names = History(), [name for kind in ALERTS for name in kind.rule().scores(History())]
    assert len({*names}) == len(names)
    assert {*names, *history.scores} == {*Detector(0.5).scores}
    places = [
        ((kind.name,) if kind.saved_at is None else kind.saved_at) + (part,)
        for kind in ALERTS
        for part in kind.rule().state_dict()
    ]
    assert len({*places}) == len(places)
