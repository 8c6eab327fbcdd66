from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradwatch.core.layers import (
    MAX_ROWS,
    OUTSIDE,
    ROOT,
    check_selection,
    clean_name,
    make_layout,
    named_layers,
    roll_up,
    running_order,
    uncompiled_layers,
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.empty(0))
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


def names(plan_layers: tuple[object, ...]) -> list[str]:
    return [layer.name for layer in plan_layers]  # type: ignore[attr-defined]


def test_layers_are_modules_that_own_parameters_and_share_none_twice() -> None:
    model = Tied()
    plan = make_layout(model, model.parameters())
    by_name = {layer.name: layer for layer in plan.layers}
    assert list(by_name) == [ROOT, "embed", "norm", "head"]
    assert by_name[ROOT].parameters == ("scale",)  # neither the empty nor the integer one
    assert by_name["embed"].shared_with == ("head.weight",)
    assert by_name["head"].parameters == ("head.bias",)
    assert sum(p is model.embed.weight for p in plan.parameters) == 1


def test_a_layer_knows_how_many_elements_it_owns() -> None:
    model, stray = Tied(), nn.Parameter(torch.ones(3, 5))
    plan = make_layout(model, [*model.parameters(), stray])
    assert {layer.name: layer.num_elements for layer in plan.layers} == {
        ROOT: 1, "embed": 28, "norm": 8, "head": 7, OUTSIDE: 15,
    }  # fmt: skip


def test_only_matrices_of_layers_other_than_norms_take_part_in_the_depth_profile() -> None:
    model = Tied()
    plan = make_layout(model, model.parameters())
    assert {layer.name for layer in plan.layers if layer.has_matrix} == {"embed", "head"}
    assert {layer.name for layer in plan.layers if layer.owns_matrix} == {"embed"}


class Holder(nn.Module):
    """Lists of parameters beside the layers that use them, and layers that share all they have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(3) for _ in range(2)])
        for layer in self.layers[1:]:
            layer.weight, layer.bias = self.layers[0].weight, self.layers[0].bias
        self.norms[1].weight, self.norms[1].bias = self.norms[0].weight, self.norms[0].bias
        self.listed = nn.ParameterList([self.layers[0].weight])
        self.mapped = nn.ParameterDict({"weight": self.layers[0].weight})


def test_layers_that_share_all_they_have_are_there_for_their_outputs_and_own_nothing() -> None:
    model = Holder()
    plan = make_layout(model, model.parameters())
    assert names(plan.layers) == ["layers.0", "layers.1", "layers.2", "norms.0"]  # no lists, no second norm
    first, second = plan.layers[:2]
    assert first.owns_matrix
    assert set(first.shared_with) >= {"layers.1.weight", "layers.2.bias", "listed.0", "mapped.weight"}
    assert (second.parameters, second.has_matrix, second.owns_matrix) == ((), True, False)
    assert second.shared_with == ("layers.0.weight", "layers.0.bias")
    assert plan.layer_index == (0, 0, 3, 3)  # each parameter once


def test_a_layer_shares_what_this_optimizer_does_not_hold_with_nobody() -> None:
    model = Tied()
    plan = make_layout(model, [model.head.bias])
    assert names(plan.layers) == ["head"]
    assert not plan.layers[0].has_matrix


def test_only_this_optimizers_parameters_are_planned() -> None:
    model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 2)})
    assert names(make_layout(model, model["g"].parameters()).layers) == ["g"]


def test_a_parameter_of_no_module_is_still_watched() -> None:
    stray = nn.Parameter(torch.ones(3))
    plan = make_layout(nn.Linear(2, 2), [stray])
    assert names(plan.layers) == [OUTSIDE]
    assert plan.parameters == (stray,)


def test_selection_keeps_every_parameter_in_the_total() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    plan = make_layout(model, model.parameters(), include=("[01]",), exclude=("0",))
    assert names(plan.layers) == ["1"]
    assert len(plan.parameters) == 6
    assert plan.layer_index == (1, 1, 0, 0, 1, 1)


def test_a_module_whose_name_ends_like_that_of_torchs_parametrizations_is_a_layer() -> None:
    inner = nn.ModuleDict({"weights": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))})
    assert list(named_layers(nn.ModuleDict({"my_parametrizations": inner}))) == ["my_parametrizations.weights"]


@pytest.mark.parametrize(("include", "exclude", "came"), [(("enc*",), (), "enc"), ((), ("*",), "exclude")])
def test_a_selection_of_nothing_is_refused_with_the_layers_there_are(
    include: tuple[str, ...], exclude: tuple[str, ...], came: str
) -> None:
    with pytest.raises(ValueError, match=came) as refusal:
        check_selection(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), include, exclude)
    assert "the model's layers are 0, 1" in str(refusal.value)


def test_layers_are_put_in_the_order_in_which_they_ran() -> None:
    model = nn.ModuleDict({"last": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "first": nn.Linear(2, 2)})
    plan = make_layout(model, model.parameters())
    places = running_order(plan.layers, ["first", "last"])
    assert [plan.layers[place].name for place in places] == ["first", "last", "unused"]
    owners = {id(p): plan.layers[i].name for p, i in zip(plan.parameters, plan.layer_index, strict=True)}
    assert all(owners[id(model[name].weight)] == name for name in ("first", "last", "unused"))


def test_wrapper_prefixes_are_no_part_of_a_name() -> None:
    assert clean_name("_orig_mod.net._checkpoint_wrapped_module.0.weight") == "net.0.weight"
    assert clean_name("net._orig_mod") == "net"
    net: Any = torch.compile(nn.Linear(2, 2), backend="eager")
    compiled = nn.ModuleDict({"net": net, "head": nn.Linear(2, 2)})
    assert list(named_layers(compiled)) == ["net", "head"]
    assert list(uncompiled_layers(compiled)) == ["head"]


def test_a_lazy_parameter_waits_until_it_has_a_shape() -> None:
    model = nn.LazyLinear(3)
    assert make_layout(model, model.parameters()).parameters == ()
    model(torch.ones(1, 2))
    assert len(make_layout(model, model.parameters()).parameters) == 2


def test_a_model_of_400_layers_rolls_up_to_its_blocks() -> None:
    wide = ["stem"] + [f"stages.{i}.{j}.conv{k}" for i in range(4) for j in range(10) for k in range(10)] + ["head"]
    rows = roll_up(wide)
    assert list(rows)[:2] == ["stem", "stages.0.0"]
    assert len(rows) == 42
    assert rows["stages.3.9"] == list(range(391, 401))


def test_a_flat_model_rolls_up_to_neighbours() -> None:
    rows = roll_up([str(i) for i in range(400)])
    assert 40 <= len(rows) <= MAX_ROWS
    assert next(iter(rows)) == "0 to 8"


def test_group_by_is_taken_at_its_word() -> None:
    assert roll_up(["a.b.c", "a.b.d", "a.e"], group_by=2) == {"a.b": [0, 1], "a.e": [2]}


paths = st.lists(st.sampled_from("ab01"), min_size=1, max_size=4).map(".".join)


@given(st.lists(paths, unique=True, min_size=1, max_size=200))
def test_rows_hold_every_layer_once_and_are_few(layer_names: list[str]) -> None:
    rows = roll_up(layer_names)
    assert sorted(i for row in rows.values() for i in row) == list(range(len(layer_names)))
    assert len(rows) <= MAX_ROWS
