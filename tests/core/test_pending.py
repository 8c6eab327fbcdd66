from __future__ import annotations

import pytest

from lightning_gradwatch.core.pending import Pending
from lightning_gradwatch.core.records import Coverage
from lightning_gradwatch.core.saved import Saved


def pending() -> Pending:
    found = Pending()
    found.add(7, (True, Coverage.ALL), is_scaled=False)
    found.add(9, (False, Coverage.NOTHING), is_scaled=True)
    return found


def test_it_goes_on_where_it_was() -> None:
    resumed = Pending()
    resumed.load_state_dict(Saved(pending().state_dict(is_whole=True)))
    assert (resumed.step, resumed.steps) == (9, [7, 9])
    assert resumed.known == [(True, Coverage.ALL), (False, Coverage.NOTHING)]


def test_rows_that_ranks_hold_parts_of_are_not_saved() -> None:
    state = pending().state_dict(is_whole=False)
    assert (state["step"], state["steps"], state["known"]) == (9, [], [])


@pytest.mark.parametrize("damage", [{"known": []}, {"steps": [7]}, {"steps": "7"}])
def test_without_all_of_them_none_comes_back(damage: dict[str, object]) -> None:
    resumed = Pending()
    resumed.load_state_dict(Saved({**pending().state_dict(is_whole=True), **damage}))
    assert (resumed.step, resumed.steps, resumed.known) == (9, [], [])


def test_dropping_keeps_where_the_run_is() -> None:
    found = pending()
    found.drop()
    assert (found.step, found.steps, found.known) == (9, [], [])
