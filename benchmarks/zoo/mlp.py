"""Perceptrons on the digits and on small tables: depth, initialisation, saturation, dead and detached layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import (
    HE,
    XAVIER,
    Detached,
    Factory,
    NoGrad,
    Supervised,
    adam,
    layers,
    mlp,
    on_digits,
    sgd,
    shift_bias,
    squared_to_one_hot,
)
from .case import Case, Task, borderline, healthy, sick
from .data import cancer, digits, loader, standardised, wine


class ToClass(nn.Module):
    """Replaces scores by the embedding of the best one: no gradient passes."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)

    def forward(self, scores: Tensor) -> Tensor:
        """The embedding of the highest score."""
        embedded: Tensor = self.embedding(scores.argmax(dim=-1))
        return embedded


def on_table(table: tuple[Tensor, Tensor], activation: type[nn.Module], optimizer: Factory) -> Task:
    """Classify a small table with four layers."""
    net = mlp(4, activation, inputs=table[0].shape[1], width=32, outputs=int(table[1].max()) + 1)
    return Task(Supervised(net, optimizer), loader(*table))


def sigmoid_scores(bias: float) -> nn.Sequential:
    """A network with sigmoid outputs that all start near zero when `bias` is very negative."""
    net = mlp(4, gain=HE)
    shift_bias(net, -1, bias)
    return net.append(nn.Sigmoid())


def softmax_scores(certainty: float) -> nn.Sequential:
    """A network with softmax outputs that starts certain of the first class when `certainty` is large."""
    net = mlp(4, gain=HE)
    bias = layers(net)[-1].bias
    assert bias is not None
    with torch.no_grad():
        bias[0] = certainty
    return net.append(nn.Softmax(dim=-1))


def accumulated(net: nn.Module) -> Task:
    """Classify the digits with the gradients of four small batches."""
    return Task(Supervised(net, sgd()), loader(*digits(), batch=16), {"accumulate_grad_batches": 4})


def encoder() -> nn.Sequential:
    """A narrow encoder: its random features alone do not suffice."""
    return mlp(4, outputs=3, gain=HE)


def with_head(features: nn.Module, width: int = 3) -> nn.Sequential:
    """The features, followed by a head that trains."""
    return nn.Sequential(features, mlp(3, inputs=width, gain=HE))


def normed(activation: type[nn.Module], depth: int) -> nn.Sequential:
    """A perceptron with batch normalisation before every activation."""
    return mlp(depth, activation, norm=nn.BatchNorm1d)


VANISHING = [
    sick(
        "sigmoid_mlp10_sgd",
        lambda: on_digits(mlp(10, nn.Sigmoid), sgd()),
        250,
        "vanishing",
        "saturating_activation",
        "relu_he_mlp10_sgd",
        "ten sigmoids: the loss never leaves chance level",
        remedy="activation.*",
        also="stalled",
    ),
    sick(
        "sigmoid_mlp20_sgd",
        lambda: on_digits(mlp(20, nn.Sigmoid), sgd(0.005)),
        300,
        "vanishing",
        "saturating_activation",
        "relu_he_mlp20",
        "twenty sigmoids: chance level",
        remedy="activation.*",
        also="stalled",
    ),
    sick(
        "sigmoid_mlp30_sgd",
        lambda: on_digits(mlp(30, nn.Sigmoid), sgd(0.01)),
        300,
        "vanishing",
        "saturating_activation",
        "relu_he_mlp30",
        "thirty sigmoids: chance level",
        remedy="activation.*",
        also="stalled dead",
    ),
    sick(
        "sigmoid_mlp10_adam",
        lambda: on_digits(mlp(10, nn.Sigmoid), adam(2e-3)),
        400,
        "vanishing",
        "saturating_activation",
        "relu_he_mlp10_adam",
        "Adam helps, yet it stays far behind its twin",
        remedy="activation.*",
    ),
    sick(
        "sigmoid_mlp20_adam",
        lambda: on_digits(mlp(20, nn.Sigmoid), adam()),
        300,
        "vanishing",
        "saturating_activation",
        "relu_he_mlp20_adam",
        "chance level even with Adam",
        remedy="activation.*",
        also="stalled",
    ),
    sick(
        "tanh_smallinit_mlp15_sgd",
        lambda: on_digits(mlp(15, nn.Tanh, gain=0.2), sgd()),
        250,
        "vanishing",
        "small_init",
        "tanh_xavier_mlp15",
        "a fifth of the Xavier gain: chance level",
        remedy="init.*",
        also="stalled",
    ),
    sick(
        "tanh_hugeinit_mlp20_sgd",
        lambda: on_digits(mlp(20, nn.Tanh, gain=50.0), sgd(0.02)),
        250,
        "vanishing",
        "large_init",
        "tanh_xavier_mlp20",
        "all units at the rails, the loss stays huge",
        remedy="init.*",
        also="exploding dead",
    ),
    sick(
        "relu_smallinit_mlp20_sgd",
        lambda: on_digits(mlp(20, gain=0.5), sgd(0.005)),
        300,
        "vanishing",
        "small_init",
        "relu_he_mlp20",
        "a third of the He gain: chance level",
        remedy="init.*",
        also="stalled",
    ),
    sick(
        "relu_smallinit_mlp20_adam",
        lambda: on_digits(mlp(20, gain=0.2), adam()),
        300,
        "vanishing",
        "small_init",
        "relu_he_mlp20_adam",
        "chance level even with Adam",
        remedy="init.*",
        also="stalled dead",
    ),
    sick(
        "relu_defaultinit_mlp20_sgd",
        lambda: on_digits(mlp(20), sgd(0.005)),
        300,
        "vanishing",
        "small_init",
        "relu_he_mlp20",
        "PyTorch's default is 0.41 of the He gain: chance level",
        remedy="init.*",
        also="stalled",
    ),
    sick(
        "relu_smallinit_nobias_mlp12",
        lambda: on_digits(mlp(12, gain=0.5, bias=False), sgd(0.02)),
        300,
        "vanishing",
        "small_init",
        "relu_he_nobias_mlp12",
        "weight gradients equally tiny everywhere: chance level",
        remedy="init.*",
        also="stalled",
    ),
    sick(
        "softsign_smallinit_mlp16",
        lambda: on_digits(mlp(16, nn.Softsign, gain=0.4), sgd()),
        250,
        "vanishing",
        "small_init",
        "softsign_xavier_mlp16",
        "chance level",
        remedy="init.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "sigmoid_mlp12_accumulated",
        lambda: accumulated(mlp(12, nn.Sigmoid)),
        150,
        "vanishing",
        "saturating_activation",
        "gelu_mlp12_accumulated",
        "chance level, with accumulated gradients",
        remedy="activation.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "wine_raw_tanh",
        lambda: on_table(wine(), nn.Tanh, sgd()),
        250,
        "vanishing dead stalled",
        "input_scale",
        "wine_standardised_tanh",
        "one feature near 1000 pins the first layer",
        remedy="input.*",
    ),
    sick(
        "cancer_raw_sigmoid",
        lambda: on_table(cancer(), nn.Sigmoid, sgd()),
        400,
        "vanishing dead stalled",
        "input_scale",
        "cancer_standardised_sigmoid",
        "features up to 4000 pin the first layer",
        remedy="input.*",
        held_out=True,
    ),
    borderline(
        "sigmoid_mlp4_sgd",
        lambda: on_digits(mlp(4, nn.Sigmoid), sgd()),
        300,
        "vanishing stalled",
        "saturating_activation",
        "harmed, but not hopeless",
    ),
    borderline(
        "tanh_default_mlp10",
        lambda: on_digits(mlp(10, nn.Tanh), sgd(momentum=0.5)),
        300,
        "vanishing",
        "small_init saturating_activation",
        "harmed, but it learns in the end",
    ),
    borderline(
        "relu_defaultinit_mlp8",
        lambda: on_digits(mlp(8), sgd(momentum=0.5)),
        250,
        "vanishing stalled",
        "small_init",
        "a long plateau that more steps would leave",
    ),
]

STALLED = [
    sick(
        "output_saturated_mse",
        lambda: on_digits(sigmoid_scores(-12.0), sgd(0.2), loss=squared_to_one_hot),
        400,
        "stalled",
        "saturated_output",
        "output_open_mse",
        "all outputs start near 6e-6: no gradient, though the error is full",
        remedy="init.*",
        also="vanishing",
    ),
    sick(
        "softmax_certain_mse",
        lambda: on_digits(softmax_scores(18.0), sgd(0.2), loss=squared_to_one_hot),
        250,
        "stalled",
        "saturated_output",
        "softmax_uncertain_mse",
        "certain of the first class: no gradient, though often wrong",
        remedy="init.*",
        also="vanishing",
        held_out=True,
    ),
]

EXPLODING = [
    sick(
        "relu_largeinit_mlp20",
        lambda: on_digits(mlp(20, gain=6.0), sgd(0.005)),
        100,
        "exploding nonfinite",
        "large_init",
        "relu_he_mlp20",
        "the loss starts at 1e9 or more and becomes NaN",
        remedy="init.*",
    ),
    sick(
        "tanh_largeinit_mlp20",
        lambda: on_digits(mlp(20, nn.Tanh, gain=3.0), sgd(0.02)),
        250,
        "exploding vanishing dead",
        "large_init",
        "tanh_xavier_mlp20",
        "gradients grow towards the input, then all units sit at the rails",
        remedy="init.*",
    ),
    sick(
        "relu_gain5_mlp12_adam",
        lambda: on_digits(mlp(12, gain=5.0), adam()),
        200,
        "exploding nonfinite dead",
        "large_init",
        "relu_he_mlp12_adam",
        "3.5 times the He gain: activations and gradients explode",
        remedy="init.*",
        held_out=True,
    ),
    sick(
        "lr_too_high",
        lambda: on_digits(mlp(6, gain=HE), sgd(5.0)),
        100,
        "exploding nonfinite",
        "learning_rate",
        "relu_he_mlp6",
        "a hundred times the right learning rate: NaN",
        remedy="lr.*",
        also="dead",
    ),
]

DEAD = [
    sick(
        "dead_relu_mid",
        lambda: on_digits(shift_bias(mlp(8, gain=HE), 4, -100.0), sgd()),
        200,
        "dead",
        "dead_relu cliff",
        "relu_he_mlp8",
        "no unit of the fifth layer ever fires: chance level",
        remedy="init.*",
        also="stalled",
    ),
    sick(
        "dead_relu_negative_bias",
        lambda: on_digits(shift_bias(mlp(6, gain=HE), 1, -100.0), adam()),
        200,
        "dead",
        "dead_relu",
        "relu_he_mlp6",
        "no unit of the second layer ever fires: chance level",
        remedy="init.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "hardtanh_at_the_rails",
        lambda: on_digits(mlp(6, nn.Hardtanh, gain=400.0), sgd()),
        200,
        "dead",
        "large_init saturating_activation",
        "hardtanh_mlp6",
        "every unit is clipped, so its derivative is exactly zero",
        remedy="init.*",
        also="exploding vanishing stalled",
        held_out=True,
    ),
]

DETACHED = [
    sick(
        "detached_encoder",
        lambda: on_digits(with_head(Detached(encoder())), adam()),
        300,
        "detached",
        "detached",
        "attached_encoder",
        "the encoder never learns, only the head does",
        also="dead",
    ),
    sick(
        "no_grad_encoder",
        lambda: on_digits(with_head(NoGrad(encoder())), adam()),
        300,
        "detached",
        "detached",
        "attached_encoder",
        "the encoder runs under no_grad",
        also="dead",
        held_out=True,
    ),
    sick(
        "argmax_in_the_middle",
        lambda: on_digits(
            nn.Sequential(mlp(3, outputs=4, gain=HE), ToClass(4, 16), mlp(3, inputs=16, gain=HE)), adam()
        ),
        300,
        "detached",
        "detached",
        "attached_encoder",
        "no gradient passes an argmax",
        also="dead",
    ),
]

TWINS = [
    healthy("relu_he_mlp6", lambda: on_digits(mlp(6, gain=HE), sgd()), 200, "learns"),
    healthy("relu_he_mlp8", lambda: on_digits(mlp(8, gain=HE), sgd()), 200, "learns"),
    healthy("relu_he_mlp10_sgd", lambda: on_digits(mlp(10, gain=HE), sgd()), 250, "learns"),
    healthy("relu_he_mlp12_adam", lambda: on_digits(mlp(12, gain=HE), adam()), 200, "learns", held_out=True),
    healthy("relu_he_mlp20", lambda: on_digits(mlp(20, gain=HE), sgd(0.005)), 300, "learns"),
    healthy("relu_he_mlp30", lambda: on_digits(mlp(30, gain=HE), sgd(0.005)), 300, "learns, if slowly"),
    healthy("relu_he_mlp10_adam", lambda: on_digits(mlp(10, gain=HE), adam(2e-3)), 400, "learns"),
    healthy("relu_he_mlp20_adam", lambda: on_digits(mlp(20, gain=HE), adam()), 300, "learns"),
    healthy("relu_he_nobias_mlp12", lambda: on_digits(mlp(12, gain=HE, bias=False), sgd(0.02)), 300, "learns"),
    healthy("tanh_xavier_mlp12", lambda: on_digits(mlp(12, nn.Tanh, gain=XAVIER), sgd()), 250, "learns"),
    healthy("tanh_xavier_mlp15", lambda: on_digits(mlp(15, nn.Tanh, gain=XAVIER), sgd()), 250, "learns"),
    healthy("tanh_xavier_mlp20", lambda: on_digits(mlp(20, nn.Tanh, gain=1.1), sgd(0.02)), 250, "learns"),
    healthy(
        "softsign_xavier_mlp16", lambda: on_digits(mlp(16, nn.Softsign, gain=1.4), sgd()), 250, "learns", held_out=True
    ),
    healthy("gelu_mlp12_accumulated", lambda: accumulated(mlp(12, nn.GELU, gain=HE)), 150, "learns", held_out=True),
    healthy("hardtanh_mlp6", lambda: on_digits(mlp(6, nn.Hardtanh, gain=XAVIER), sgd()), 200, "learns", held_out=True),
    healthy(
        "wine_standardised_tanh",
        lambda: on_table(standardised(wine()), nn.Tanh, sgd()),
        250,
        "the same network on standardised features",
    ),
    healthy(
        "cancer_standardised_sigmoid",
        lambda: on_table(standardised(cancer()), nn.Sigmoid, sgd()),
        400,
        "the same network on standardised features",
        held_out=True,
    ),
    healthy(
        "output_open_mse",
        lambda: on_digits(sigmoid_scores(0.0), sgd(0.2), loss=squared_to_one_hot),
        400,
        "the same network with outputs that start in the middle",
    ),
    healthy(
        "softmax_uncertain_mse",
        lambda: on_digits(softmax_scores(0.0), sgd(0.2), loss=squared_to_one_hot),
        250,
        "the same network with an undecided start",
        held_out=True,
    ),
    healthy("attached_encoder", lambda: on_digits(with_head(encoder()), adam()), 300, "the same network, attached"),
]

CASES: list[Case] = VANISHING + STALLED + EXPLODING + DEAD + DETACHED + TWINS
