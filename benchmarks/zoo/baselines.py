"""What a user would write instead: rules of thumb and published rules for vanishing gradients, as callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch._lightning import LightningHost

Gradients = dict[str, Tensor]


class Baseline(Callback, ABC):
    """Alarms where a rule holds for some steps in a row, separately for each optimizer.

    Attributes:
        title: The rule in a few words.
        patience: For how many steps the rule must hold.
        openings: The steps at which an alarm began.
    """

    title: str
    patience: int = 10

    def __init__(self) -> None:
        self.openings: list[int] = []
        self._streaks: defaultdict[int, int] = defaultdict(int)
        self._last_steps: dict[int, int] = {}

    @abstractmethod
    def holds(self, gradients: Gradients) -> bool:
        """Whether the rule holds for the gradients, by parameter name."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Apply the rule to the complete gradient, before it is clipped."""
        host = LightningHost(trainer, pl_module, self)
        key, step, num_finished = id(optimizer), host.step(), host.num_finished_steps()
        if self._last_steps.get(key) == num_finished:  # a further evaluation of the same step
            return
        self._last_steps[key] = num_finished
        self._streaks[key] = self._streaks[key] + 1 if self.holds(_gradients(pl_module, optimizer)) else 0
        if self._streaks[key] == self.patience:
            self.openings.append(step)


class SmallMean(Baseline):
    """A tensor's mean |g| is below 1e-7: the rule of Amazon SageMaker Debugger's VanishingGradient, by default."""

    title = "any tensor's mean |g| < 1e-7"
    patience = 1

    def holds(self, gradients: Gradients) -> bool:
        """Whether any parameter's mean absolute gradient is below the threshold."""
        return any(float(_values(grad).abs().sum()) / max(grad.numel(), 1) < 1e-7 for grad in gradients.values())


class SmallTotal(Baseline):
    """The norm over all gradients is below 1e-3."""

    title = "total norm < 1e-3 for 10 steps"

    def holds(self, gradients: Gradients) -> bool:
        """Whether the total norm is below the threshold."""
        return sum(_square(grad) for grad in gradients.values()) < 1e-3**2


class LargeRatio(Baseline):
    """The largest gradient norm of a layer is more than 1e3 times the smallest; one of zero is infinitely small."""

    title = "largest/smallest layer > 1e3 for 10 steps"

    def holds(self, gradients: Gradients) -> bool:
        """Whether the squared norms of the layers lie too far apart."""
        squares: defaultdict[str, float] = defaultdict(float)
        for name, grad in gradients.items():
            squares[name.rpartition(".")[0]] += _square(grad)
        if not squares:
            return False
        low, high = min(squares.values()), max(squares.values())
        return low == 0 or high / low > 1e3**2


class FirstToLast(Baseline):
    """The first weight's gradient is less than 1e-3 times the last one's, and below 1e-4: AutoTrainer's rule.

    The accuracy, which must be poor besides before AutoTrainer does something, is left out: it is for classifiers.

    Source:
        Zhang et al., "AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System", ICSE 2021.
    """

    title = "first/last weight < 1e-3, first < 1e-4"
    patience = 5

    def holds(self, gradients: Gradients) -> bool:
        """Whether the rule holds for the first and the last matrix with a gradient, in the order of definition."""
        matrices = [grad for grad in gradients.values() if grad.ndim > 1]
        if not matrices:
            return False
        first, last = (_square(grad) ** 0.5 for grad in (matrices[0], matrices[-1]))
        return bool(first < 1e-4 and first < 1e-3 * last)


BASELINES: tuple[type[Baseline], ...] = (SmallMean, SmallTotal, LargeRatio, FirstToLast)


def _gradients(module: LightningModule, optimizer: Optimizer) -> Gradients:
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = module.named_parameters()
    return {name: p.grad.detach() for name, p in named if p.grad is not None and id(p) in own}


def _values(grad: Tensor) -> Tensor:
    """The elements that may differ from zero, in a precision in which squares do not underflow."""
    return (grad.coalesce().values() if grad.is_sparse else grad).to(torch.float64)


def _square(grad: Tensor) -> float:
    return float(_values(grad).square().sum())
