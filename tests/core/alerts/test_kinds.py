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
GUIDE = (Path(__file__).parents[3] / "docs" / "guide.md").read_text(encoding="utf-8")
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
def test_a_kind_has_a_test_of_its_own_a_section_in_the_guide_and_a_case_in_the_zoo(kind: Kind) -> None:
    assert (Path(__file__).parent / f"test_{kind.name}.py").exists()
    section = re.search(rf"^### {kind.name.replace('_', ' ')}\n(.+?)^### ", GUIDE, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert "**Opens when**" in section[1]
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
