"""The optimizers of a run: their names, and what is counted for each."""

from __future__ import annotations

import functools
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_gradwatch.config import configure
from lightning_gradwatch.core.optional import Omission
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.watches import Watches, num_log_points, optimizer_names


@pytest.mark.parametrize("kinds", [["A", "A", "A"], ["A-B", "A-B", "A"], ["A", "A", "A-1", "A-1"], ["A-1", "A", "A"]])
def test_optimizers_have_names_of_their_own(kinds: list[str]) -> None:
    made = [type(kind, (torch.optim.SGD,), {})([torch.zeros(1)]) for kind in kinds]
    names = optimizer_names(made)
    assert len(set(names)) == len(names)
    assert all(name.startswith(kind) for name, kind in zip(names, kinds, strict=True))


@pytest.mark.parametrize(("num_steps", "every", "expected"), [(0, 5, 0), (4, 5, 0), (5, 5, 1), (14, 5, 2), (14, 0, 0)])
def test_loggers_are_due_after_every_so_many_steps(num_steps: int, every: int, expected: int) -> None:
    assert num_log_points(num_steps, every) == expected


def test_an_optimizer_that_comes_later_starts_with_the_points_that_are_past() -> None:
    net, told = nn.Linear(2, 2), list[Omission]()
    watches = Watches(net, configure(), RunState(), can_hook=True, tell=told.append)
    first = watches.add(torch.optim.SGD(net.parameters()), "first")
    watches.count_points(3)
    second = watches.add(torch.optim.SGD(net.parameters()), "second")
    watches.count_points(4)
    assert (first.num_points, second.num_points) == (3, 4)
    assert first.passes_log_point(4)
    assert not second.passes_log_point(4)


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.Linear])
def test_it_says_that_time_is_not_watched_where_ranks_hold_parts(
    kind: type[nn.Module], is_cut: bool, tmp_path: Path
) -> None:
    net = kind(2, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if is_cut:
            fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        watches = Watches(net, configure(), RunState(), can_hook=True, tell=print)
        watches.add(torch.optim.SGD(net.parameters()), "")
        said = [line for line in watches.limits() if "time steps of recurrent layers" in line]
    finally:
        torch.distributed.destroy_process_group()
    assert bool(said) == (is_cut and kind is nn.LSTM)


def test_a_step_that_was_looked_at_ahead_and_never_taken_is_forgotten_with_its_batch() -> None:
    net = nn.Linear(2, 2)
    watches = Watches(net, configure(), RunState(), can_hook=True, tell=print)
    watch = watches.add(torch.optim.SGD(net.parameters()), "")
    assert not watch.has_observed(0)
    assert watch.has_observed(0)  # a further evaluation of the same step
    watches.begin_batch(0, may_look=False)
    assert watch.has_observed(0)
    watch.is_ahead = True
    watches.begin_batch(0, may_look=False)
    assert not watch.has_observed(0)


def test_a_watch_that_has_gone_leaves_its_state_to_the_next_one() -> None:
    net, state = nn.Linear(2, 2), RunState()
    watches = Watches(net, configure(), state, can_hook=True, tell=print)
    old, new = (torch.optim.SGD(net.parameters()) for _ in range(2))
    watch = watches.add(old, "")
    watch.watcher.sampling.thinning = 4
    net(torch.ones(1, 2)).sum().backward()
    watch.watcher.observe()
    assert len(list(watches.retire([new]))) == 1
    assert watches.of(old) is None
    assert (watches.add(new, "").watcher.sampling.num_steps, watches.thinning, state.watchers) == (1, 4, {})


def test_everything_is_left_though_a_user_s_handler_of_signals_raises_on_the_way() -> None:
    class TimeUpError(Exception):
        """What the user's handler raises."""

    net, left = nn.Linear(2, 2), list[str]()
    watches = Watches(net, configure(), RunState(), can_hook=True, tell=print)
    for name in ("first", "second"):
        watch = watches.add(torch.optim.SGD(net.parameters()), name).watcher
        watch.close = functools.partial(left.append, name)  # type: ignore[method-assign]

    def interrupted(number: int, _: object) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        watches.probe.detach = lambda: signal.raise_signal(signal.SIGALRM)  # type: ignore[method-assign]
        with pytest.raises(TimeUpError):
            watches.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sorted(left) == ["first", "second"]
