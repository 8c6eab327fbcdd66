"""Rounding: half precision, and Adam below its eps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import HE, Factory, Supervised, adam, layers, mlp, per_token, pretrained, sgd, weighted
from .case import Case, Task, borderline, healthy, sick
from .data import digits, loader, text
from .transformer import LanguageModel, stack


def classify(optimizer: Factory, weight: float = 1.0, **trainer: str) -> Task:
    """Classify the digits with a weighted loss."""
    module = Supervised(mlp(4, gain=HE), optimizer, weighted(weight))
    return Task(module, loader(*digits()), dict(trainer))


def exact_mse(output: Tensor, target: Tensor) -> Tensor:
    """Squared error, computed in float32."""
    return F.mse_loss(output.float(), target.float())


def total_squares(output: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over the batch."""
    return F.mse_loss(output, target, reduction="sum")


def faint(amplitude: float, optimizer: Factory, **trainer: str) -> Task:
    """Reconstruct digits of a tiny amplitude from digits of the usual one, starting at zero."""
    images, _ = digits()
    net = mlp(4, outputs=64, gain=HE)
    nn.init.zeros_(layers(net)[-1].weight)
    return Task(Supervised(net, optimizer, exact_mse), loader(images, amplitude * images, batch=256), dict(trainer))


def adapt(optimizer: Factory, **trainer: str) -> Task:
    """Adapt a network trained on the digits to their mirror images with small steps."""
    images, labels = digits()
    net = pretrained(mlp(4, gain=HE), images, labels)
    return Task(Supervised(net, optimizer), loader(images.flip(1), labels), dict(trainer))


def write(optimizer: Factory, **trainer: str) -> Task:
    """Train a language model with coarse weights: all are drawn well above the size of an update."""
    model = LanguageModel(stack(2, 48, causal=True))
    return Task(Supervised(model, optimizer, per_token), loader(*text(32), batch=16), dict(trainer))


def count_ink(**trainer: str) -> Task:
    """Regress the total ink of a digit in raw units (around 300), whose square does not fit into float16."""
    images, _ = digits()
    ink = images.sum(1, keepdim=True) * 6.0 + 313.0
    return Task(Supervised(mlp(3, outputs=1, gain=HE), sgd(1e-7), total_squares), loader(images, ink), dict(trainer))


CASES: list[Case] = [
    sick(
        "fp16_underflow",
        lambda: classify(sgd(5e4), 1e-6, precision="16-true"),
        250,
        "underflow",
        "half_precision",
        "fp32_small_loss",
        "gradients below 6e-8 are zero in float16: chance level",
        remedy="precision.*",
        also="dead stalled vanishing",
    ),
    sick(
        "fp16_faint_targets",
        lambda: faint(5e-5, sgd(0.5), precision="16-true"),
        300,
        "underflow",
        "half_precision",
        "fp32_faint_targets",
        "gradients of faint targets are zero in float16",
        remedy="precision.*",
        also="dead stalled vanishing",
        held_out=True,
    ),
    borderline(
        "fp16_partial_underflow",
        lambda: classify(sgd(5e3), 1e-5, precision="16-true"),
        250,
        "underflow stalled",
        "half_precision",
        "some gradients are lost, yet it learns",
    ),
    sick(
        "bf16_update_underflow",
        lambda: adapt(sgd(1e-4, momentum=0.0), precision="bf16-true"),
        500,
        "underflow",
        "half_precision",
        "fp32_small_updates",
        "updates below half a unit in the last place are lost",
        remedy="precision.*",
        also="stalled",
    ),
    sick(
        "bf16_lm_update_underflow",
        lambda: write(adam(5e-5), precision="bf16-true"),
        400,
        "underflow",
        "half_precision",
        "fp32_lm_small_updates",
        "updates below half a unit in the last place are lost",
        remedy="precision.*",
        also="stalled",
        held_out=True,
    ),
    sick(
        "fp16_adam_eps_is_zero",
        lambda: classify(adam(), precision="16-true"),
        200,
        "nonfinite",
        "half_precision adam_eps",
        "fp32_adam",
        "an eps of 1e-8 is zero in float16: 0/0",
        remedy="precision.*",
        also="underflow",
    ),
    sick(
        "fp16_overflow",
        lambda: count_ink(precision="16-true"),
        100,
        "nonfinite",
        "half_precision",
        "fp32_raw_units",
        "a square beyond 65504",
        remedy="precision.*",
        also="exploding",
        held_out=True,
    ),
    sick(
        "adam_eps_dominates",
        lambda: classify(adam(), 1e-10),
        250,
        "underflow",
        "adam_eps",
        "adam_eps_small",
        "gradients far below eps: Adam hardly moves",
        remedy="adam_eps.*",
        also="stalled",
    ),
    sick(
        "adam_eps_large",
        lambda: classify(adam(eps=1.0)),
        200,
        "underflow",
        "adam_eps",
        "fp32_adam",
        "an eps of one, far above the gradients: Adam hardly moves",
        remedy="adam_eps.*",
        also="stalled",
        held_out=True,
    ),
    healthy("fp32_small_loss", lambda: classify(sgd(5e4), 1e-6), 250, "the same in float32"),
    healthy("fp32_faint_targets", lambda: faint(5e-5, sgd(0.5)), 300, "the same in float32", held_out=True),
    healthy("fp32_small_updates", lambda: adapt(sgd(1e-4, momentum=0.0)), 500, "the same in float32"),
    healthy("fp32_lm_small_updates", lambda: write(adam(5e-5)), 400, "the same in float32", held_out=True),
    healthy("fp32_adam", lambda: classify(adam()), 200, "the same in float32"),
    healthy("fp32_raw_units", count_ink, 100, "the same in float32", held_out=True),
    healthy("adam_eps_small", lambda: classify(adam(eps=1e-20), 1e-10), 250, "the same with a smaller eps"),
    healthy("bf16_true", lambda: classify(sgd(0.05), precision="bf16-true"), 250, "updates large enough: learns"),
    healthy("bf16_mixed", lambda: classify(adam(), precision="bf16-mixed"), 200, "learns"),
    healthy("fp16_true_sgd", lambda: classify(sgd(0.05), precision="16-true"), 250, "gradients large enough: learns"),
]
