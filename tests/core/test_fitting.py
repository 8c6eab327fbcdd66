from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.engines import Direct
from lightning_gradwatch.core.fitting import Fitting
from lightning_gradwatch.core.instruments import Instruments, are_identical
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.settings import Settings
from tests.tasks import deep_net


def nothing() -> None:
    """Nothing is to be brought home."""


def looks(fitting: Fitting) -> tuple[bool, bool]:
    """Whether the parameters are others, and whether anything else may be."""
    return fitting.may_have_changed, fitting.is_stale


def instruments_of(fitting: Fitting) -> Instruments | None:
    """Those that it has now."""
    return fitting.instruments


def fitting_of(net: nn.Module, settings: Settings | None = None) -> tuple[Fitting, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return Fitting(net, Direct(optimizer), "", settings or Settings(), make_probe(net), OptionalFigures()), optimizer


def fitted(net: nn.Module, settings: Settings | None = None) -> tuple[Fitting, torch.optim.Optimizer]:
    fitting, optimizer = fitting_of(net, settings)
    fitting.refit(nothing)
    return fitting, optimizer


def test_instruments_are_made_once_for_the_same_parameters() -> None:
    fitting, optimizer = fitting_of(deep_net(depth=3))
    assert looks(fitting) == (True, True)
    fitting.refit(nothing)
    assert looks(fitting) == (False, False)
    optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])  # another list of the same ones
    assert looks(fitting) == (False, False)


def test_parameters_that_are_cast_or_moved_in_place_are_found_by_a_close_look() -> None:
    net = deep_net(depth=3)
    fitting, _ = fitted(net)
    first = next(net.parameters())
    first.data = first.data.double()
    assert looks(fitting) == (False, False)
    fitting.look_closely()
    assert looks(fitting) == (True, True)


def test_what_old_instruments_have_measured_is_brought_home_while_they_are_there() -> None:
    net = deep_net(depth=3)
    fitting, optimizer = fitted(net)
    before, seen = fitting.instruments, []
    bring_home: Callable[[], None] = lambda: seen.append(fitting.instruments)  # noqa: E731 (a name for a type)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]})
    names, _ = fitting.refit(bring_home)
    assert seen == [before]
    assert fitting.instruments is not before
    assert before is not None
    assert names == before.names


def test_of_a_layer_whose_parameters_are_all_new_no_past_is_kept() -> None:
    net = deep_net(depth=3)
    fitting, optimizer = fitted(net)
    assert isinstance(net, nn.Sequential)
    last = net[-1]
    assert isinstance(last, nn.Linear)
    last.weight, last.bias = nn.Parameter(torch.ones_like(last.weight)), nn.Parameter(torch.ones_like(last.bias))
    optimizer.param_groups[0]["params"] = list(net.parameters())
    names, _ = fitting.refit(nothing)
    assert fitting.instruments is not None
    assert list(names) == [*fitting.instruments.names[:-1], ""]


def test_a_policy_remembers_across_an_optimizer_that_has_no_parameters_for_a_while() -> None:
    net = deep_net(depth=3)
    fitting, optimizer = fitted(net, Settings(policies=make_policies("percentile")))
    parameters = optimizer.param_groups[0]["params"]
    net(torch.ones(2, 64)).sum().backward()
    assert fitting.instruments is not None
    for _ in range(7):
        fitting.instruments.window.push(None, None, gradients_scaled=False)
        fitting.instruments.clippers.clip_(fitting.instruments.window.norms[-1], None)
    memory = fitting.state_dict()["clips"]
    optimizer.param_groups[0]["params"] = []
    assert fitting.refit(nothing) == ((), True)
    assert instruments_of(fitting) is None
    optimizer.param_groups[0]["params"] = parameters
    fitting.refit(nothing)
    again = fitting.state_dict()["clips"]
    assert str(again) == str(memory)
    assert "7" in str(memory)


def test_layers_that_run_for_the_first_time_get_their_place() -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b", "c")})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = make_probe(net)
    fitting = Fitting(net, Direct(optimizer), "", Settings(), probe, OptionalFigures())
    fitting.refit(nothing)
    probe.attach()
    net["a"](net["c"](net["b"](torch.ones(1, 2))))
    assert looks(fitting) == (False, True)
    assert list(fitting.rearrange()) == ["a", "b", "c"]
    assert looks(fitting) == (False, False)
    assert fitting.instruments is not None
    assert fitting.instruments.names == ["b", "c", "a"]
    probe.detach()


def test_rows_of_a_checkpoint_come_back_only_with_all_their_steps() -> None:
    net = deep_net(depth=3)
    fitting, _ = fitted(net)
    net(torch.ones(2, 64)).sum().backward()
    assert fitting.instruments is not None
    fitting.instruments.window.push(None, None, gradients_scaled=False)
    state = fitting.state_dict()
    for num_rows, comes_back in ((1, True), (2, False), (0, False)):
        resumed, _ = fitting_of(net)
        resumed.load_state_dict(Saved(state), num_rows)
        _, has_rows = resumed.refit(nothing)
        assert has_rows is comes_back


def test_groups_are_the_same_by_identity_and_not_by_value() -> None:
    one, twin = torch.ones(1), torch.ones(1)
    assert are_identical([[one], [twin]], [[one], [twin]])
    assert not are_identical([[one]], [[twin]])
    assert not are_identical([[one, twin]], [[one], [twin]])
    assert not are_identical([[one]], [[one, twin]])
