from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.core.architecture import merge, survey
from lightning_gradwatch.core.records import Architecture

NO_ACTIVATION = {"sigmoid": 0, "tanh": 0, "relu": 0, "smooth": 0}


class Three(nn.Module):
    """Three linear layers, each followed by a function."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.after(layer(x))
        return x


class Joined(nn.Module):
    """Two linear layers, of which ``join`` makes one tensor."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.join(x, hidden, self.second(hidden))


def seen_in(model: nn.Module, *shape: int) -> Architecture:
    return survey(model(torch.randn(*(shape or (3, 4)))).sum(), model)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (functional.relu, "relu"),
        (torch.relu, "relu"),
        (torch.relu_, "relu"),
        (functional.relu6, "relu"),
        (lambda x: torch.clamp_min(x, 0), "relu"),
        (torch.sigmoid, "sigmoid"),
        (torch.tanh, "tanh"),
        (functional.gelu, "smooth"),
        (functional.silu, "smooth"),
        (functional.elu, "smooth"),
        (functional.mish, "smooth"),
        (functional.softplus, "smooth"),
        (functional.leaky_relu, "smooth"),
        (functional.hardswish, "smooth"),
    ],
)
def test_functional_activations_are_seen(function: Any, kind: str) -> None:
    assert dict(seen_in(Three(function)).activations) == {**NO_ACTIVATION, kind: 3}


@pytest.mark.parametrize(
    ("module", "kind"),
    [(nn.ReLU, "relu"), (nn.ReLU6, "relu"), (nn.Sigmoid, "sigmoid"), (nn.Tanh, "tanh"), (nn.GELU, "smooth")],
)
def test_a_module_is_counted_once_and_not_again_in_the_graph(module: type[nn.Module], kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), module(), nn.Linear(4, 4), module())
    assert dict(seen_in(model).activations) == {**NO_ACTIVATION, kind: 2}


@pytest.mark.parametrize(
    "function", [functional.logsigmoid, lambda x: functional.softmax(x, -1), lambda x: x * 2 + 1, torch.exp]
)
def test_what_does_not_saturate_or_rectify_is_no_activation(function: Any) -> None:
    assert dict(seen_in(Three(function)).activations) == NO_ACTIVATION


def test_a_loss_on_logits_is_no_sigmoid() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    loss = nn.BCEWithLogitsLoss()(model(torch.randn(3, 4)), torch.ones(3, 1))
    assert dict(survey(loss, model).activations) == NO_ACTIVATION


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)])
def test_normalisation_layers_are_counted(norm: nn.Module) -> None:
    assert seen_in(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4))).norms == 1


def test_functional_normalisation_is_counted() -> None:
    assert seen_in(Three(lambda x: functional.layer_norm(x, (4,)))).norms == 3
    assert seen_in(Three(lambda x: functional.group_norm(x, 2))).norms == 3


def test_the_norm_of_a_vector_is_no_normalisation_layer() -> None:
    assert seen_in(Three(lambda x: x * x.norm())).norms == 0
    assert seen_in(Three(lambda x: functional.normalize(x, dim=-1))).norms == 0


@pytest.mark.parametrize(
    "join",
    [
        lambda x, a, b: a + b,
        lambda x, a, b: b.add_(a),
        lambda x, a, b: torch.add(a, b, alpha=0.5),
        lambda x, a, b: torch.cat([a, b], dim=-1),
        lambda x, a, b: torch.cat([x, a, b], dim=-1),
    ],
)
def test_residual_additions_and_concatenations_are_skips(join: Any) -> None:
    assert seen_in(Joined(join)).skips == 1


@pytest.mark.parametrize(
    "join",
    [
        lambda x, a, b: b,
        lambda x, a, b: b + 1.0,
        lambda x, a, b: b + x,  # from the data, which asks for no gradient
        lambda x, a, b: torch.cat([x, b], dim=-1),
        lambda x, a, b: torch.stack([a, b]),
        lambda x, a, b: a * b,
    ],
)
def test_what_bridges_no_layer_is_no_skip(join: Any) -> None:
    assert seen_in(Joined(join)).skips == 0


def test_a_bias_that_is_added_by_hand_is_no_skip() -> None:
    class Affine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the method it overrides
            return input @ self.weight.T + self.bias

    assert seen_in(nn.Sequential(Affine(4, 4), nn.ReLU(), Affine(4, 4))).skips == 0


def test_a_transformer_block_has_two_skips_and_two_norms() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    seen = seen_in(nn.Sequential(nn.Linear(8, 8), block), 2, 5, 8)
    assert (seen.skips, seen.norms) == (2, 2)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_what_a_recurrent_layer_is_made_of_does_not_depend_on_the_length_of_its_input(kind: Any) -> None:
    model = kind(4, 5)
    assert survey(model(torch.randn(8, 2, 4))[0].sum(), model) == survey(model(torch.randn(32, 2, 4))[0].sum(), model)


def test_modules_stand_in_for_what_leaves_no_trace_in_the_graph() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.LayerNorm(4), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.hidden, x.requires_grad_(), use_reentrant=True)
            return out

    seen = seen_in(Checkpointed())
    assert dict(seen.activations) == {**NO_ACTIVATION, "sigmoid": 2}
    assert seen.norms == 1


def test_a_loss_without_a_graph_is_harmless() -> None:
    assert survey(torch.tensor(1.0), nn.Linear(2, 2)) == Architecture(tuple(NO_ACTIVATION.items()), 0, 0)
    assert dict(survey(torch.tensor(1.0), nn.Sequential(nn.Tanh())).activations)["tanh"] == 1


def test_a_graph_deeper_than_pythons_stack_is_walked() -> None:
    x = torch.ones(1, requires_grad=True)
    for _ in range(3000):
        x = x.tanh()
    assert dict(survey(x.sum(), nn.Identity()).activations)["tanh"] == 3000


def test_a_shared_part_of_the_graph_is_counted_once() -> None:
    hidden = torch.ones(2, requires_grad=True).sigmoid()
    assert dict(survey((hidden * hidden + hidden).sum(), nn.Identity()).activations)["sigmoid"] == 1


def test_an_autograd_function_of_the_users_own_is_walked_through() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return 2 * gradients[0]

    assert dict(seen_in(Three(lambda x: Twice.apply(x.tanh()))).activations)["tanh"] == 3


def test_two_losses_of_one_model_merge_to_the_larger_counts() -> None:
    one, other = Architecture((("relu", 3), ("tanh", 0)), 2, 0), Architecture((("relu", 1), ("tanh", 4)), 0, 5)
    assert merge(None, one) == one
    assert merge(one, other) == merge(other, one) == Architecture((("relu", 3), ("tanh", 4)), 2, 5)
