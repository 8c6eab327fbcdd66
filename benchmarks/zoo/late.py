"""Runs that change half-way: most for the worse, some on purpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .blocks import HE, XAVIER, Supervised, adam, layers, mlp, on_digits, scale_layer, sgd, shift_bias
from .case import Case, Task, healthy, sick
from .data import loader, rows
from .recurrent import LastStep, identity

Event = Callable[[Supervised], object]


def scaled(places: tuple[int, ...], factor: float) -> Event:
    """Multiply the weights of a few layers."""
    return lambda module: [scale_layer(module.net, index, factor) for index in places]


def shifted(index: int, bias: float) -> Event:
    """Fill the bias of one layer."""
    return lambda module: shift_bias(module.net, index, bias)


def setting(name: str, value: float) -> Event:
    """Change a setting of the optimizer."""

    def change(module: Supervised) -> None:
        for group in module.trainer.optimizers[0].param_groups:
            group[name] = value

    return change


def trained(first: int, requires_grad: bool) -> Event:
    """Freeze or thaw the first layers."""

    def change(module: Supervised) -> None:
        for layer in layers(module.net)[:first]:
            layer.requires_grad_(requires_grad)

    return change


def amplified(module: Supervised) -> None:
    """Double the recurrence."""
    with torch.no_grad():
        for name, weight in module.net.named_parameters():
            if "weight_hh" in name:
                weight.mul_(2.0)


def from_step(
    start: int, change: Callable[[Tensor], Tensor], stop: int | None = None
) -> Callable[[int, Tensor], Tensor]:
    """Change the inputs from one step on (and up to another)."""
    return lambda step, x: change(x) if step >= start and (stop is None or step < stop) else x


def thawed() -> Task:
    """A trunk that is frozen at first and trained later, as in gradual unfreezing."""
    return on_digits(mlp(6, gain=HE), adam(), events={0: trained(3, False), 120: trained(3, True)})


def remembers(events: dict[int, Event]) -> Task:
    """A recurrence that starts as the identity reads digits and remembers them."""
    return Task(Supervised(LastStep(identity(8), 10), adam(1e-3), events=events), loader(*rows(blank=32), batch=32))


CASES: list[Case] = [
    sick(
        "late_saturation",
        lambda: on_digits(mlp(8, nn.Tanh, gain=XAVIER), sgd(), events={200: shifted(3, 6.0)}),
        400,
        "vanishing dead stalled",
        "cliff saturating_activation",
        "steady_tanh_mlp8",
        "one layer is pinned to its rails at step 200: back to chance level",
        remedy="init.*",
        onset=200,
    ),
    sick(
        "late_tiny_layers",
        lambda: on_digits(mlp(10, gain=HE, bias=False), sgd(0.02), events={180: scaled((3, 4, 5), 3e-4)}),
        400,
        "vanishing stalled",
        "cliff small_init",
        "steady_nobias_mlp10",
        "three layers shrink to 3e-4 at step 180: back to chance level",
        remedy="init.*",
        held_out=True,
        onset=180,
    ),
    sick(
        "late_weight_decay",
        lambda: on_digits(mlp(8, gain=HE), sgd(0.02), events={150: setting("weight_decay", 0.5)}),
        400,
        "vanishing stalled",
        "weight_decay",
        "steady_relu_mlp8",
        "decay is switched on at step 150: the weights shrink, back to chance level",
        remedy="weight_decay.*",
        also="dead",
        onset=150,
    ),
    sick(
        "late_adamw_decay",
        lambda: on_digits(
            mlp(8, nn.GELU, gain=HE),
            lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.0),
            events={150: setting("weight_decay", 100.0)},
        ),
        400,
        "vanishing stalled",
        "weight_decay",
        "steady_gelu_mlp8",
        "decoupled decay far too strong from step 150 on",
        remedy="weight_decay.*",
        also="dead",
        held_out=True,
        onset=150,
    ),
    sick(
        "l2_too_strong",
        lambda: on_digits(mlp(8, nn.Tanh, gain=XAVIER), sgd(weight_decay=0.2)),
        400,
        "vanishing stalled",
        "weight_decay",
        "steady_tanh_mlp8",
        "the weights drift to zero: chance level",
        remedy="weight_decay.*",
        also="dead",
    ),
    sick(
        "lr_jump",
        lambda: on_digits(mlp(8, gain=HE), sgd(0.02), events={150: setting("lr", 2.0)}),
        300,
        "exploding nonfinite dead stalled",
        "learning_rate dead_relu",
        "steady_relu_mlp8",
        "a hundredfold rate from step 150 on",
        remedy="lr.*",
        also="vanishing",
        onset=150,
    ),
    sick(
        "lr_jump_adam",
        lambda: on_digits(mlp(8, nn.GELU, gain=HE), adam(), events={150: setting("lr", 0.3)}),
        350,
        "exploding nonfinite dead stalled vanishing",
        "learning_rate dead_relu",
        "steady_gelu_mlp8",
        "a three-hundredfold rate from step 150 on",
        remedy="lr.*",
        held_out=True,
        onset=150,
    ),
    sick(
        "one_wild_batch",
        lambda: on_digits(mlp(8, gain=HE), sgd(0.02), feed=from_step(150, lambda x: 1e3 * torch.randn_like(x), 151)),
        350,
        "exploding nonfinite dead stalled",
        "bad_data input_scale learning_rate dead_relu",
        "steady_relu_mlp8",
        "one batch of noise at a thousand times the scale ruins the weights",
        remedy="clip.*",
        also="vanishing",
        onset=150,
    ),
    sick(
        "late_input_scale",
        lambda: on_digits(mlp(4, nn.Tanh, width=16), adam(), feed=from_step(150, lambda x: 97 * x + 790)),
        400,
        "vanishing dead stalled",
        "input_scale",
        "steady_tanh_mlp4",
        "raw pixels instead of standardised ones from step 150 on",
        remedy="input.*",
        held_out=True,
        onset=150,
    ),
    sick(
        "late_dead_relu",
        lambda: on_digits(mlp(6, gain=HE), adam(), events={160: shifted(2, -1e3)}),
        350,
        "dead",
        "dead_relu cliff",
        "steady_relu_mlp6",
        "no unit of the third layer fires after step 160",
        remedy="init.*",
        also="stalled",
        held_out=True,
        onset=160,
    ),
    sick(
        "late_rnn_explosion",
        lambda: remembers({150: amplified}),
        300,
        "exploding nonfinite",
        "recurrence large_init",
        "rnn_identity_rows_T40",
        "the recurrence doubles at step 150",
        remedy="init.* recurrent.orthogonal recurrent.identity",
        held_out=True,
        onset=150,
    ),
    healthy("steady_tanh_mlp8", lambda: on_digits(mlp(8, nn.Tanh, gain=XAVIER), sgd()), 400, "undisturbed"),
    healthy(
        "steady_nobias_mlp10",
        lambda: on_digits(mlp(10, gain=HE, bias=False), sgd(0.02)),
        400,
        "undisturbed",
        held_out=True,
    ),
    healthy("steady_relu_mlp8", lambda: on_digits(mlp(8, gain=HE), sgd(0.02)), 400, "undisturbed"),
    healthy("steady_gelu_mlp8", lambda: on_digits(mlp(8, nn.GELU, gain=HE), adam()), 400, "undisturbed", held_out=True),
    healthy(
        "steady_tanh_mlp4", lambda: on_digits(mlp(4, nn.Tanh, width=16), adam()), 400, "undisturbed", held_out=True
    ),
    healthy("steady_relu_mlp6", lambda: on_digits(mlp(6, gain=HE), adam()), 350, "undisturbed"),
    healthy(
        "frozen_midway",
        lambda: on_digits(mlp(6, gain=HE), sgd(0.02), events={150: trained(3, False)}),
        350,
        "half of it is frozen at step 150, on purpose",
    ),
    healthy("thawed_midway", thawed, 300, "half of it is frozen until step 120, on purpose"),
    healthy(
        "noise_switched_on",
        lambda: on_digits(mlp(6, gain=HE), adam(), feed=from_step(150, lambda x: x + 0.7 * torch.randn_like(x))),
        350,
        "augmentation from step 150 on: the loss rises and falls again",
        held_out=True,
    ),
]
