"""Blind shapes: what goes wrong, and what does not, with optimizers, adversaries, teachers and frozen parts."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .blocks import HE, Factory, Supervised, adam, frozen, mlp, on_digits, pretrained, scale_layer, sgd
from .case import Case, Task, healthy, sick
from .data import digits, loader


class Adversaries(LightningModule):
    """A GAN whose generator either climbs log D (as one should) or descends log(1 - D), which a sure D makes flat.

    Args:
        objective: What the generator minimises.
        head_start: Steps that the discriminator trains alone before the run begins.
        generator: Makes the optimizer of the generator.
        rate: Learning rate of the discriminator, with Adam.
    """

    def __init__(
        self, objective: Literal["fool", "not caught"], head_start: int, generator: Factory, rate: float
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(mlp(3, inputs=16, outputs=64, gain=HE), nn.Tanh())
        self.discriminator = mlp(3, lambda: nn.LeakyReLU(0.2), outputs=1, gain=HE)
        self.objective, self.optimizer, self.rate = objective, generator, rate
        self.gaps: list[float] = []  # how far the mean fake is from the mean digit
        images, _ = squashed()
        alone = torch.optim.Adam(self.discriminator.parameters(), rate)
        for _ in range(head_start):
            alone.zero_grad()
            torch.autograd.backward(self.judged(images[torch.randint(len(images), (64,))], self.fakes(64).detach()))
            alone.step()

    def fakes(self, count: int) -> Tensor:
        """Generated images."""
        images: Tensor = self.generator(torch.randn(count, 16))
        return images

    def judged(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the discriminator."""
        return F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Update the discriminator, then the generator."""
        real, _ = batch
        of_generator, of_discriminator = cast(list[Any], self.optimizers())
        fake = self.fakes(len(real))
        judged = self.judged(real, fake.detach())
        self.update(of_discriminator, judged)
        score = self.discriminator(fake)
        loss = F.softplus(-score).mean() if self.objective == "fool" else -F.softplus(score).mean()
        self.update(of_generator, loss)
        self.gaps.append((fake.mean(0) - real.mean(0)).norm().item())
        return (judged + loss).detach()

    def update(self, optimizer: Any, loss: Tensor) -> None:
        """One step of one optimizer."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        """One each."""
        return [
            self.optimizer(self.generator.parameters()),
            torch.optim.Adam(self.discriminator.parameters(), self.rate, betas=(0.5, 0.99)),
        ]


class Distilled(LightningModule):
    """A student learns a frozen teacher's softened scores.

    Args:
        trained: The network whose parameters the optimizer is given.
    """

    def __init__(self, trained: Literal["student", "teacher", "copy"]) -> None:
        super().__init__()
        self.teacher = frozen(pretrained(mlp(4, gain=HE), *digits(), 250))
        self.student = mlp(3, nn.Tanh, width=32)
        self.copy = mlp(3, nn.Tanh, width=32)
        self.copy.load_state_dict(self.student.state_dict())
        self.trained = trained

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The divergence at a temperature of three."""
        images, _ = batch
        with torch.no_grad():
            goal = (self.teacher(images) / 3).softmax(1)
        return 9 * F.kl_div((self.student(images) / 3).log_softmax(1), goal, reduction="batchmean")

    def configure_optimizers(self) -> Any:
        """Adam for whatever was handed over."""
        part: nn.Module = getattr(self, self.trained)
        return torch.optim.Adam(part.requires_grad_().parameters(), 3e-3)


class LowRank(nn.Module):
    """A frozen layer and an update of low rank; `start` is the deviation of its first factor."""

    def __init__(self, base: nn.Linear, rank: int = 4, start: float = 0.125) -> None:
        super().__init__()
        self.base = frozen(base)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=start)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, updated."""
        output: Tensor = self.base(x) + self.up(self.down(x))
        return output


def squashed() -> tuple[Tensor, Tensor]:
    """Digits with pixels between -1 and 1."""
    images, labels = digits()
    low, high = images.min(), images.max()
    return 2 * (images - low) / (high - low) - 1, labels


def adversaries(*arguments: Any) -> Task:
    """Train a GAN on the digits."""
    return Task(Adversaries(*arguments), loader(*squashed(), batch=64))


def distilled(trained: Literal["student", "teacher", "copy"]) -> Task:
    """Train a student."""
    return Task(Distilled(trained), loader(*digits()))


def adapted(start: float) -> Task:
    """Adapt a network that knows upright digits to mirrored ones, by low-rank updates alone."""
    images, labels = digits()
    base = cast(nn.Sequential, pretrained(mlp(4, gain=HE), images, labels, 250))
    parts = [LowRank(part, start=start) if isinstance(part, nn.Linear) else part for part in base]
    mirrored = images.reshape(-1, 8, 8).flip(2).flatten(1)
    return Task(Supervised(nn.Sequential(*parts), adam(1e-2)), loader(mirrored, labels))


def fresh(*, only_last_bias: bool = False) -> nn.Module:
    """A network that starts undecided, on request frozen but for its last bias."""
    net = cast(nn.Sequential, scale_layer(mlp(4, gain=HE), -1, 0.1))
    if only_last_bias:
        frozen(net)
        cast(nn.Linear, net[-1]).bias.requires_grad_()
    return net


def finetuned() -> Task:
    """A network that knows the first five digits learns all ten with its last two layers."""
    images, labels = digits()
    few = labels < 5
    net = cast(nn.Sequential, pretrained(mlp(6, nn.GELU, gain=HE), images[few], labels[few], 250))
    for part in list(net)[:-3]:
        frozen(part)
    return on_digits(net, adam(2e-3))


CASES: tuple[Case, ...] = (
    sick(
        "gan_starved",
        lambda: adversaries("not caught", 300, sgd(0.02, momentum=0.5), 5e-4),
        600,
        "vanishing stalled dead",
        "saturated_output",
        "gan_fooling",
        "the discriminator is sure before the generator begins, and log(1 - D) is flat there; "
        "gap of the means 6.5 to 6.5, 6.5 to 6.5",
    ),
    sick(
        "student_of_wrong_optimizer",
        lambda: distilled("copy"),
        200,
        "stalled detached",
        "",
        "student",
        "the optimizer holds a copy of the student, which never gets a gradient, and the student never moves; "
        "loss 16 to 16, 16 to 16",
    ),
    sick(
        "frozen_by_mistake",
        lambda: on_digits(fresh(only_last_bias=True), sgd(0.02)),
        200,
        "stalled",
        "",
        "thawed_again",
        "a fresh network of which only the last bias is trained: chance level; loss 2.3 to 2.3, 2.3 to 2.3",
    ),
    sick(
        "low_rank_both_zero",
        lambda: adapted(0.0),
        200,
        "dead stalled",
        "small_init",
        "low_rank",
        "both factors of every update start at zero: nothing ever moves; loss 5.7 to 5.4, 4.1 to 4",
    ),
    healthy(
        "gan_fooling",
        lambda: adversaries("fool", 0, adam(5e-4), 2e-3),
        600,
        "both players learn, from the same start; gap of the means 6.6 to 1.7, 6.4 to 1.8",
    ),
    healthy("student", lambda: distilled("student"), 200, "a frozen teacher, on purpose; loss 15 to 0.89, 15 to 0.97"),
    healthy(
        "thawed_again",
        lambda: on_digits(fresh(), sgd(0.02)),
        200,
        "all of it is trained; loss 2.2 to 0.024, 2.1 to 0.019",
    ),
    healthy(
        "low_rank",
        lambda: adapted(0.125),
        200,
        "one factor of every update starts at zero; loss 3.6 to 0.074, 2.3 to 0.059",
    ),
    healthy(
        "finetuned_top",
        finetuned,
        200,
        "pretrained, four of six layers frozen on purpose; loss 6.6 to 0.29, 5.4 to 0.29",
    ),
    healthy(
        "small_noisy_batches",
        lambda: on_digits(mlp(4, gain=HE), sgd(2e-3), batch=2),
        500,
        "two samples to a batch: the loss is all noise, and falls; loss 2.4 to 0.07, 2.8 to 0.11",
    ),
)
