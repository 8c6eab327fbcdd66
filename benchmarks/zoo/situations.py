"""Situations in which a verdict is easily wrong: runs that are done, odd starts, spare parts, losses without noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .blocks import HE, Supervised, adam, mlp, on_digits, sgd, shift_bias, with_gain
from .case import Case, Task, healthy, sick
from .data import cancer, digits, loader, standardised, waves


def tumours(optimizer: Any) -> Task:
    """Tell tumours apart by one logit."""
    features, labels = standardised(cancer())
    data = loader(features, labels.float().unsqueeze(1), batch=64)
    return Task(Supervised(mlp(4, inputs=30, outputs=1, gain=HE), optimizer, F.binary_cross_entropy_with_logits), data)


def zeros_and_ones(optimizer: Any) -> Task:
    """Two digits, told apart with a margin: the loss is soon exactly zero."""
    images, labels = digits()
    chosen = labels < 2
    return Task(
        Supervised(mlp(4, outputs=2, gain=HE), optimizer, F.multi_margin_loss), loader(images[chosen], labels[chosen])
    )


class Ramped(Supervised):
    """The weight of the loss rises from zero over so many steps, as a new term is often let in."""

    def __init__(self, *arguments: Any, steps: int = 300) -> None:
        super().__init__(*arguments)
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The weighted loss."""
        return min(1.0, self.global_step / self.steps) * super().training_step(batch, batch_idx)


def blank_at_first(step: int, images: Tensor) -> Tensor:
    """Nothing in the first batch."""
    return images * 0 if step == 0 else images


def slow_start(steps: int) -> Callable[[Optimizer], LambdaLR]:
    """A linear warm-up from next to nothing."""
    return lambda optimizer: LambdaLR(optimizer, lambda step: (step + 1) / steps)


class TwoHeads(nn.Module):
    """A trunk with a second head that runs, and whose output nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.spare, self.head = mlp(4, outputs=64, gain=HE), nn.Linear(64, 3), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of the first head."""
        features = self.trunk(x)
        self.spare(features)
        scores: Tensor = self.head(features)
        return scores


class Branches(nn.Module):
    """Two branches side by side; what they find is added up."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = (mlp(4, outputs=64, gain=HE) for _ in range(2))
        self.head = nn.Linear(64, 10)
        for layer in (self.first[2], self.first[4]):
            nn.init.constant_(layer.get_parameter("bias"), bias)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.head(self.first(x) + self.second(x))
        return scores


def whole(optimizer: Any, amplitude: float, offset: float = 0.0) -> Task:
    """Regress with all rows in every batch."""
    points, values = waves(noise=0.0, amplitude=amplitude)
    net = mlp(4, nn.Tanh, inputs=4, outputs=1)
    return Task(Supervised(net, optimizer, F.mse_loss), loader(points, values + offset, batch=len(points)))


def prices(optimizer: Any, scale: float) -> Task:
    """Regress prices, in units or in hundred thousands."""
    points, values = waves()
    targets = (values * 5e4 + 2e5) * scale
    return Task(Supervised(mlp(4, inputs=4, outputs=1, gain=HE), optimizer, F.mse_loss), loader(points, targets))


class BothWays(nn.Module):
    """A recurrence that reads a sequence in both directions; a class from both ends, or from everywhere."""

    def __init__(self, cell: type[nn.RNN] | type[nn.GRU], is_pooled: bool) -> None:
        super().__init__()
        self.read, self.head, self.is_pooled = (
            cell(8, 32, batch_first=True, bidirectional=True),
            nn.Linear(64, 8),
            is_pooled,
        )

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        found, _ = self.read(x)
        ends = torch.cat([found[:, -1, :16], found[:, 0, 16:]], dim=1)
        scores: Tensor = self.head(found.amax(1) if self.is_pooled else ends)
        return scores


def in_the_middle(cell: type[nn.RNN] | type[nn.GRU], is_pooled: bool) -> Task:
    """Name the symbol that stands in the middle of sixty steps of noise."""
    source = torch.Generator().manual_seed(11)
    labels = torch.randint(8, (4096,), generator=source)
    sequence = 0.1 * torch.randn(4096, 60, 8, generator=source)
    sequence[torch.arange(4096), 30, labels] += 1.0
    return Task(Supervised(BothWays(cell, is_pooled), adam(3e-3)), loader(sequence, labels, batch=16))


def standard_normal(depth: int, width: int) -> nn.Module:
    """Every weight from N(0, 1), as a first attempt at an initialisation often has it."""
    net = mlp(depth, nn.Tanh, width=width)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    return net


def drawn(depth: int, width: int) -> Task:
    """Classify the digits from there."""
    return on_digits(standard_normal(depth, width), sgd(0.01))


CASES: list[Case] = [
    # --- done
    healthy(
        "done_bce",
        lambda: tumours(adam(1e-2)),
        700,
        "the loss falls to 1e-8, where the gradient of a logit is exactly zero",
    ),
    healthy(
        "done_margin", lambda: zeros_and_ones(adam(1e-2)), 300, "the loss is exactly zero within some twenty steps"
    ),
    # --- odd starts
    healthy(
        "ramped_loss",
        lambda: Task(Ramped(mlp(6, gain=HE), sgd(0.05, momentum=0.0)), loader(*digits())),
        500,
        "the weight of the loss rises from zero",
    ),
    healthy(
        "blank_first_batch",
        lambda: on_digits(with_gain(mlp(6), 2.5), adam(1e-3), feed=blank_at_first),
        300,
        "the first batch is blank, and its loss lower than that of the next ones",
    ),
    healthy(
        "long_warmup",
        lambda: on_digits(mlp(6, gain=HE), sgd(0.05), schedule=slow_start(20_000)),
        200,
        "the rate rises for 20,000 steps, from 2.5e-6",
    ),
    healthy(
        "slow_but_falling",
        lambda: on_digits(mlp(6, gain=HE), sgd(3e-5), batch=256),
        400,
        "a rate far too low, at which the loss falls all the same",
    ),
    healthy(
        "steep_but_learning",
        lambda: on_digits(with_gain(mlp(20, bias=False), HE * 1.5), adam(1e-4)),
        400,
        "the gradient grows by three decades towards the input, and the loss falls",
    ),
    healthy(
        "noisy_but_falling",
        lambda: on_digits(mlp(9, nn.Tanh), adam(3e-4), batch=8),
        500,
        "a profile at the threshold, a noisy loss, and it learns",
    ),
    # --- spare parts
    healthy("unused_head", lambda: on_digits(TwoHeads(), adam()), 300, "one head of two is not in the loss"),
    healthy("two_branches", lambda: on_digits(Branches(), adam()), 300, "the twin of dead_branch"),
    sick(
        "dead_branch",
        lambda: on_digits(Branches(-50.0), adam()),
        300,
        "dead",
        "dead_relu",
        "two_branches",
        "no unit of one branch is ever above zero; the other one learns, a little worse",
    ),
    sick(
        "zeros_come_and_go",
        lambda: on_digits(shift_bias(mlp(6, gain=HE), 1, -5.0), sgd(1e-3, momentum=0.0), batch=4),
        500,
        "dead",
        "dead_relu",
        "relu_he_mlp6",
        "a unit of the second layer is above zero for one image in a few dozen: chance level",
        also="stalled",
    ),
    healthy("both_ways_pooled", lambda: in_the_middle(nn.GRU, True), 300, "the twin of both_ways_rnn"),
    sick(
        "both_ways_rnn",
        lambda: in_the_middle(nn.RNN, False),
        300,
        "vanishing_through_time",
        "recurrence",
        "both_ways_pooled",
        "what counts stands in the middle, where neither direction carries anything: chance level",
    ),
    # --- losses without noise
    healthy("whole_batch", lambda: whole(adam(1e-2), 1.0), 400, "all rows in every batch, and it learns"),
    sick(
        "whole_batch_stuck",
        lambda: whole(sgd(1e-13, momentum=0.0), 1.0, 3e7),
        600,
        "stalled",
        "learning_rate target_scale",
        "whole_batch",
        "a loss of 1e15 falls at every step, by next to nothing in all",
    ),
    # --- causes
    healthy("prices_scaled", lambda: prices(adam(1e-3), 1e-5), 400, "the twin of raw_prices"),
    sick(
        "raw_prices",
        lambda: prices(adam(1e-6), 1.0),
        400,
        "stalled",
        "target_scale",
        "prices_scaled",
        "targets of 2e5 are out of reach at this rate",
    ),
    *(
        sick(
            f"standard_normal_tanh{depth}",
            partial(drawn, depth, width),
            300,
            "exploding vanishing dead",
            "large_init",
            "tanh_xavier_mlp12",
            "every weight is drawn from N(0, 1)",
            also="stalled",
        )
        for depth, width in ((8, 128), (14, 64))
    ),
]
