from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trials.models import (
    after,
    assert_same,
    convolutions,
    cross_entropy,
    decades,
    digits,
    images,
    learn,
    mlp,
    refused,
    treated,
    trial_model,
)


class Functional(nn.Module):
    """Calls its activations as functions, in three ways, and ends in one."""

    def __init__(self, depth: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for index, layer in enumerate(self.hidden):
            x = layer(x) * scale
            x = (torch.sigmoid(x), x.sigmoid(), F.sigmoid(x))[index % 3]
        return torch.sigmoid(self.last(x))


class Gated(nn.Module):
    """A hidden sigmoid, one that gates (as in squeeze and excitation), and one at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.hidden, self.gating, self.output = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.first(x))
        x = x * self.gating(self.gate(x)).unsqueeze(0).squeeze(0)
        return self.output(self.last(x))


class Listed(nn.Module):
    """Keeps its one activation registered, in a plain list and in a dictionary, and uses it many times."""

    def __init__(self, output: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = nn.Sigmoid()
        self.plain = [self.act]
        self.by_name = nn.ModuleDict({"act": self.act})
        self.hidden, self.last, self.output = (
            nn.ModuleList(nn.Linear(16, 16) for _ in range(9)),
            nn.Linear(16, 4),
            output,
        )

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.hidden):
            x = (self.act, self.plain[0], self.by_name["act"])[index % 3](layer(x))
        scores: Tensor = self.last(x)
        return self.act(scores) if self.output else scores


class Looped(nn.Module):
    """Cannot be traced by torch.fx: its control flow looks at the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x)) if x.mean() < 1e9 else x
        return self.last(x)


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 4).float())


@pytest.mark.parametrize(("variant", "new"), [("relu", nn.ReLU), ("silu", nn.SiLU), ("tanh", nn.Tanh)])
def test_a_hidden_activation_is_swapped_and_nothing_else_changes(variant: str, new: type) -> None:
    net = mlp(8, nn.Sigmoid)
    model = treated(f"activation.{variant}", net, digits()).model
    assert [type(m) for m in model] == [new if isinstance(m, nn.Sigmoid) else type(m) for m in net]
    assert_same(model.state_dict(), net.state_dict())
    assert model(digits()[0]).shape == net(digits()[0]).shape


def test_the_code_for_this_very_model_spares_gates_and_outputs() -> None:
    shown: Any = Gated()
    exec(treated("activation.relu", Gated(), digits(), squared).code, {"model": shown, "nn": nn})
    assert [type(m) for m in (shown.hidden, shown.gating, shown.output)] == [nn.ReLU, nn.Sigmoid, nn.Sigmoid]
    listed: Any = Listed()
    exec(treated("activation.relu", Listed(), digits()).code, {"model": listed, "nn": nn})
    assert type(listed.act) is type(listed.by_name["act"]) is nn.ReLU
    functional = treated("activation.relu", Functional(), digits(), squared)
    assert functional.code == "# Functional.forward: torch.nn.functional.relu for its hidden activations"


@pytest.mark.parametrize("key", ["activation.relu_he", "activation.silu_he", "activation.tanh_xavier"])
def test_with_the_initialisation_that_belongs_to_it_the_gradient_reaches_the_first_layers(key: str) -> None:
    for net, batch in ((mlp(12, nn.Sigmoid), digits()), (convolutions(9, nn.Sigmoid), images())):
        assert decades(net, batch) > 4
        assert abs(decades(treated(key, net, batch).model, batch)) < 2


@pytest.mark.parametrize("key", ["activation.relu_he", "activation.relu", "activation.leaky_relu", "activation.gelu"])
def test_the_code_shown_does_what_is_tried(key: str) -> None:
    net = mlp(6, nn.ReLU if key.endswith(("leaky_relu", "gelu")) else nn.Sigmoid)
    ill = treated(key, net, digits())
    shown, tried = after(ill.code, net), ill.model
    assert [type(m) for m in shown] == [type(m) for m in tried]
    assert_same(shown.state_dict(), tried.state_dict())
    assert torch.equal(shown(digits()[0]), tried(digits()[0]))


def test_gates_and_outputs_keep_their_sigmoid() -> None:
    model = treated("activation.relu", Gated(), digits(), squared).model
    assert [type(m) for m in (model.hidden, model.gating, model.output)] == [nn.ReLU, nn.Sigmoid, nn.Sigmoid]


@pytest.mark.parametrize("loss", [cross_entropy, squared])
def test_an_output_is_an_output_whatever_the_loss_does_with_it(loss: Any) -> None:
    net = nn.Sequential(nn.Linear(16, 4), nn.Sigmoid())
    assert refused("activation.relu", net, digits(), loss) == "only at the output or as gates"


def test_one_activation_in_many_places_is_swapped_in_all_of_them() -> None:
    net = Listed()
    model = treated("activation.relu_he", net, digits()).model
    assert model.act is model.plain[0] is model.by_name["act"]
    assert type(model.act) is nn.ReLU
    assert decades(net, digits()) > 4 > 2 > abs(decades(model, digits()))


def test_one_activation_that_is_also_the_output_s_is_let_alone() -> None:
    assert refused("activation.relu", Listed(output=True), digits(), squared) == "only at the output or as gates"


def test_functions_are_rewritten_where_fx_traces() -> None:
    net = Functional()
    ill = treated("activation.relu", net, digits(), squared)
    x = inputs = digits()[0]
    for layer in net.hidden:
        x = F.relu(layer(x))
    torch.testing.assert_close(ill.model(inputs), torch.sigmoid(net.last(x)))
    scaled = ill.model(inputs, scale=0.0)
    torch.testing.assert_close(scaled, torch.sigmoid(net.last(torch.zeros(32, 16))))
    assert abs(decades(treated("activation.relu_he", net, digits(), squared).model, digits(), squared)) < 2
    assert decades(net, digits(), squared) > 4


def test_a_rewritten_model_can_be_copied_and_its_copy_is_its_own() -> None:
    model = treated("activation.relu", Functional(), digits(), squared).model
    twin = trial_model(model, digits()).model
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert model(digits()[0]).std() > 0 == twin(digits()[0]).std()


def test_functions_are_rewritten_in_a_network_that_reads_two_views() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Functional(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) + self.body(-x))

    net = Twice()
    model = treated("activation.relu_he", net, digits()).model
    assert decades(net, digits()) > 4 > 2 > abs(decades(model, digits()))


@pytest.mark.parametrize(
    ("function", "key"),
    [
        (F.softsign, "activation.tanh"),
        (F.hardtanh, "activation.silu"),
        (F.hardsigmoid, "activation.relu"),
        (F.relu6, "activation.leaky_relu"),
        (torch.relu, "activation.gelu"),
        (lambda x: x.relu_(), "activation.leaky_relu"),
    ],
)
def test_a_function_kept_as_an_attribute_is_rewritten(function: Any, key: str) -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.act = nn.Linear(16, 16), nn.Linear(16, 4), function

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.first(x)))

    net = Choosing()
    new: dict[str, Any] = {
        "tanh": torch.tanh,
        "silu": F.silu,
        "relu": F.relu,
        "leaky_relu": F.leaky_relu,
        "gelu": F.gelu,
    }
    model = treated(key, net, digits()).model
    expected = net.last(new[key.partition(".")[2]](net.first(digits()[0])))
    torch.testing.assert_close(model(digits()[0]), expected)


def test_functions_that_fx_cannot_trace_are_refused() -> None:
    assert "no hidden Sigmoid" in refused("activation.relu", Looped(), digits())


def test_relu_in_place_becomes_leaky() -> None:
    net = convolutions(6, lambda: nn.ReLU(inplace=True))
    nn.init.constant_(net[4].bias, -100.0)
    learn(net, images())
    assert not net[0].weight.grad.any()
    model = treated("activation.leaky_relu", net, images()).model
    learn(model, images())
    assert model[0].weight.grad.any()
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_hooks_and_mode_of_a_swapped_activation_stay() -> None:
    net, seen = mlp(4, nn.Sigmoid).eval(), []
    net[1].register_forward_hook(lambda m, args, output: seen.append(type(m)))
    model = treated("activation.relu", net, digits()).model
    seen.clear()
    model(digits()[0])
    assert seen == [nn.ReLU]
    assert not model[1].training


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_compiled_or_wrapped_model_is_refused() -> None:
    assert "before torch.compile" in refused("activation.relu", torch.compile(mlp(4, nn.Sigmoid)), digits())
    assert "DataParallel" in refused("activation.relu", nn.DataParallel(mlp(4, nn.Sigmoid)), digits())


def test_a_model_that_does_not_run_is_refused() -> None:
    assert "could not be run" in refused("activation.relu", mlp(4, nn.Sigmoid), digits(features=5))
    assert "how its forward is called" in refused("activation.relu", mlp(4, nn.Sigmoid), {"x": 1}, loss=None)


def test_a_recorded_example_is_enough() -> None:
    model = treated("activation.relu", mlp(4, nn.Sigmoid), {"x": 1}, None, example=(digits()[0],)).model
    assert type(model[1]) is nn.ReLU
