"""In which order layers ran, at a cost that does not grow with their number."""

from __future__ import annotations

from lightning_gradwatch.core.run_order import RunOrder


class Name(str):
    """A name that counts how often it is compared with another one."""

    __slots__ = ()
    num_comparisons = 0

    def __eq__(self, other: object) -> bool:
        Name.num_comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def run(order: RunOrder, *names: str) -> None:
    order.start()
    for name in names:
        if name not in order.placed:
            order.place(name)
        order.previous = name


def test_a_layer_that_first_runs_late_comes_behind_the_one_that_ran_before_it() -> None:
    order = RunOrder()
    run(order, "a", "b", "c")
    run(order, "late first", "a", "late", "b", "c", "late last")
    assert order.names == ["late first", "a", "late", "b", "c", "late last"]


def test_a_place_is_found_without_a_look_at_all_other_layers() -> None:
    order, num_layers = RunOrder(), 2_000
    Name.num_comparisons = 0
    run(order, *(Name(f"layers.{i}") for i in range(num_layers)))
    assert len(order.names) == num_layers
    assert Name.num_comparisons < 10 * num_layers
