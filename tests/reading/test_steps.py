"""Norms of every step from pieces: the newest counts, then the finest, and nothing is counted twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.reading.bins import Bins, reduce_steps
from lightning_gradwatch.reading.steps import Part, put_together

LINES = ("loss",)


def part(*blocks: tuple[int, int, int, float], lines: tuple[str, ...] = LINES) -> Part:
    """Blocks of bins: first step, last step, width of a bin, and when it was written, which its norms tell."""
    bins, written = [], []
    for first, last, width, time in blocks:
        steps = np.arange(first, last + 1)
        norms = (steps[:, None] + time * 1000).astype(np.float32)
        bins.append(reduce_steps(steps, norms, np.repeat(norms, len(lines), axis=1), width))
        written += [time] * len(bins[-1])
    return Part(Bins.joined(bins), np.array(written, np.float64), lines)


def spans(bins: Bins) -> list[tuple[int, int, int]]:
    return list(zip(bins.first.tolist(), bins.last.tolist(), bins.count.tolist(), strict=True))


def test_parts_are_one_series_in_whatever_order_they_come() -> None:
    first, second = part((0, 3, 1, 1.0), (4, 7, 2, 2.0)), part((8, 15, 4, 3.0))
    for parts in ([first, second], [second, first]):
        found = put_together(parts, [], LINES)
        assert spans(found) == [
            (0, 0, 1),
            (1, 1, 1),
            (2, 2, 1),
            (3, 3, 1),
            (4, 5, 2),
            (6, 7, 2),
            (8, 11, 4),
            (12, 15, 4),
        ]
        assert found.high[:, 0].tolist() == [1000, 1001, 1002, 1003, 2005, 2007, 3011, 3015]
        assert found.lines[-1, 0].tolist() == [3012, 3013.5, 3015]


def test_a_resumed_run_takes_the_place_of_what_was_written_from_there_on() -> None:
    first, second = part((0, 79, 40, 1.0), (80, 119, 40, 2.0)), part((120, 159, 40, 3.0))
    resumed = part((100, 139, 40, 4.0))
    found = put_together([first, second, resumed], [], LINES)
    assert spans(found) == [(0, 39, 40), (40, 79, 40), (80, 99, 20), (100, 139, 40)]
    assert found.high[-1, 0] == 4139
    # what was told around an alert by then is void as well, but not what was told since
    early, late = part((90, 110, 1, 3.5)), part((130, 135, 1, 5.0))
    around = put_together([first, second, resumed], [early, late], LINES)
    assert spans(around)[2] == (80, 89, 10)
    assert around.first.tolist()[3:13] == list(range(90, 100))
    assert spans(around)[13:] == [(100, 129, 30), *((step, step, 1) for step in range(130, 136)), (136, 139, 4)]


def test_steps_around_an_alert_take_the_place_of_the_bins_that_cover_them() -> None:
    coarse = part((0, 399, 100, 2.0), (400, 499, 100, 4.0))
    around = part((150, 299, 1, 3.0), (250, 310, 1, 3.5))  # two alerts whose windows overlap
    found = put_together([coarse], [around], LINES)
    fine = [(step, step, 1) for step in range(150, 311)]
    assert spans(found) == [(0, 99, 100), (100, 149, 50), *fine, (311, 399, 89), (400, 499, 100)]
    assert found.high[2:4, 0].tolist() == [3150, 3151]
    assert found.high[152, 0] == 3800


def test_steps_around_an_alert_may_be_all_there_is() -> None:
    found = put_together([], [part((5, 7, 1, 1.0))], LINES)
    assert spans(found) == [(5, 5, 1), (6, 6, 1), (7, 7, 1)]
    ahead = put_together([part((0, 3, 2, 1.0))], [part((2, 5, 1, 2.0))], LINES)
    assert spans(ahead) == [(0, 1, 2), (2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 5, 1)]


def test_a_window_may_be_written_before_the_bin_that_covers_it() -> None:
    found = put_together([part((0, 99, 100, 5.0))], [part((20, 30, 1, 1.0))], LINES)
    assert spans(found) == [(0, 19, 20), *((step, step, 1) for step in range(20, 31)), (31, 99, 69)]


def test_numbers_of_the_run_that_a_part_lacks_are_not_known() -> None:
    before, after = part((0, 1, 1, 1.0), lines=()), part((2, 3, 1, 2.0), lines=("coefficient", "loss"))
    found = put_together([before, after], [], ("loss", "coefficient"))
    assert np.isnan(found.lines[:2]).all()
    assert found.lines[2:, :, 1].tolist() == [[2002, 2002], [2003, 2003]]


BLOCKS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=8)


@given(blocks=BLOCKS, windows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=4), data=st.data())
def test_every_step_is_told_once_and_by_what_counts(blocks: Any, windows: Any, data: st.DataObject) -> None:
    """Against a table of single steps, as a person would write it down."""
    table: dict[int, float] = {}
    written = []
    for time, (first, length, width) in enumerate(blocks, start=1):
        table = {step: at for step, at in table.items() if step < first}
        table |= dict.fromkeys(range(first, first + length), float(time))
        written.append((first, first + length - 1, width, float(time)))
    # windows around alerts of the last process, so that none of them is void by a resume
    fine: dict[int, float] = {}
    around = []
    for time, (first, length) in enumerate(windows, start=100):
        fine = {step: at for step, at in fine.items() if step < first}
        fine |= dict.fromkeys(range(first, first + length), float(time))
        around.append((first, first + length - 1, 1, float(time)))
    cut = data.draw(st.integers(0, len(written)))
    parts = [part(*some) for some in (written[:cut], written[cut:]) if some]
    found = put_together(parts, [part(*around)] if around else [], LINES)
    assert np.array_equal(found.first, np.sort(found.first))
    told = {
        step: high // 1000
        for first, last, high in zip(found.first, found.last, found.high[:, 0], strict=True)
        for step in range(first, last + 1)
    }
    assert sum((found.last - found.first + 1).tolist()) == len(told)
    assert told == {**table, **fine}
    assert (found.count <= found.last - found.first + 1).all()


def test_norms_are_not_copied_where_nothing_is_to_be_put_together() -> None:
    only = part((0, 9, 1, 1.0))
    assert put_together([only], [], LINES).high is only.bins.high
