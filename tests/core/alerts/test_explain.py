from __future__ import annotations

from typing import get_args

import pytest

from lightning_gradwatch.core.alerts import KINDS
from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Cause, Finding
from tests.core.alerts.trained import relu_net, scaled, watched
from tests.core.builders import finding


def test_a_sound_network_is_left_in_peace() -> None:
    assert watched(scaled(relu_net(), 1.0), 30, lr=0.02) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_explained_even_without_any_evidence(kind: str) -> None:
    seen = Finding(kind, "alert", 3, None, ("first", "last"), 2.5, 2.0)
    alert = explain(seen, History().evidence, "generator")
    assert (alert.kind, alert.step, alert.layer, alert.value, alert.threshold) == (kind, 3, "first", 2.5, 2.0)
    assert alert.optimizer == "generator"
    assert alert.cause in get_args(Cause)
    assert alert.remedies
    assert "step 3" in alert.message
    assert "Try: " in alert.message
    assert alert.summary.endswith(".")
    assert alert.summary[1:] in alert.message  # the rest of which has places of its own
    assert not [part for part in ("(step 3): ", "Try: ", *alert.remedies) if part in alert.summary]
    assert alert.evidence.lower() not in alert.summary.lower()
    assert not alert.summary.startswith("First")  # which would be another layer


def test_every_kind_has_a_sentence_of_its_own() -> None:
    """None falls through to the words of another; a kind that nobody has written words for says what it is."""
    kinds = (*KINDS, "overheated")
    alerts = {kind: explain(finding(kind, "first", "last"), History().evidence) for kind in kinds}
    sentences = {kind: alert.message.partition("tep 7")[0] for kind, alert in alerts.items()}
    assert len(set(sentences.values())) == len(kinds)
    unknown = alerts["overheated"]
    assert "`overheated` is at 2.5" in unknown.message
    assert (unknown.cause, unknown.kind, unknown.layer) == ("unknown", "overheated", "first")
    assert unknown.remedies
    assert "Values are lost in rounding" in alerts["underflow"].message
    assert all(
        explain(finding(kind), History().evidence).message
        for kind in ("nonfinite", "stalled", "underflow", "overheated")
    )
