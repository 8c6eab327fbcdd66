"""The document in the event file and the lines of ``alerts.jsonl``, put together."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import pytest

from lightning_gradwatch.cli.incidents import merge, newest
from lightning_gradwatch.reading.alert import AlertRecord
from tests.builders import as_logged
from tests.cli.command import alert

WRITTEN = 1_800_000_000.0


def line(event: str, time: float | None, *arguments: Any, **changes: Any) -> dict[str, Any]:
    clock = {} if time is None else {"time": datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="seconds")}
    return {"event": event, "run": "r", **clock, **asdict(alert(*arguments, **changes))}


def known(*alerts: Any) -> list[AlertRecord]:
    return [as_logged(one) for one in alerts]


def test_without_a_document_the_lines_tell_everything() -> None:
    lines = [line("opened", 1.0, 5), line("opened", 2.0, 7, layer="b"), line("ended", 3.0, 5, 9)]
    found = merge([], lines, -math.inf)
    assert [(one["step"], one["until_step"]) for one in found] == [(5, 9), (7, None)]
    assert not {"event", "time", "run"} & set(found[0])


@pytest.mark.parametrize("seconds", [0, 1, 3600])
def test_a_line_written_after_the_document_or_in_its_second_is_added(seconds: int) -> None:
    found = merge(known(alert(5)), [line("ended", WRITTEN + seconds, 5, 12)], WRITTEN + 0.7)
    assert [one["until_step"] for one in found] == [12]


def test_a_line_older_than_the_document_is_of_a_course_that_was_given_up() -> None:
    stale = line("opened", WRITTEN - 60, 39)
    assert merge(known(alert(5, 8)), [stale], WRITTEN) == known(alert(5, 8))


def test_a_line_that_does_not_say_when_it_was_written_counts() -> None:
    assert [one["step"] for one in merge(known(alert(5)), [line("opened", None, 9)], WRITTEN)] == [5, 9]


def test_what_has_ended_stays_ended() -> None:
    assert merge(known(alert(5, 8)), [line("opened", WRITTEN, 5)], WRITTEN) == known(alert(5, 8))


def test_a_notice_that_rose_is_an_alert() -> None:
    lines = [line("opened", 1.0, 5, level="notice"), line("escalated", 2.0, 5)]
    assert [one["level"] for one in merge([], lines, -math.inf)] == ["alert"]


def test_the_same_trouble_of_two_optimizers_is_two_alerts() -> None:
    lines = [line("opened", 1.0, 5, optimizer="Adam"), line("opened", 1.0, 5, optimizer="SGD")]
    assert len(merge([], lines, -math.inf)) == 2


def test_a_line_that_is_no_alert_is_left_out() -> None:
    assert merge([], [{"event": "opened", "kind": "vanishing", "step": 3, "optimizer": ""}], -math.inf) == []


def test_of_very_many_alerts_the_open_and_the_newest_are_kept() -> None:
    alerts = known(alert(0), *(alert(step, step + 1) for step in range(1, 500)))
    kept = newest(alerts)
    assert len(kept) == 101
    assert (kept[0]["step"], kept[1]["step"]) == (0, 400)
