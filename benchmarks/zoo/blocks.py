"""Building blocks shared by the cases: a training module, initialisations and small networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .case import Task
from .data import digits, loader

Loss = Callable[[Tensor, Tensor], Tensor]
Factory = Callable[[Iterable[nn.Parameter]], Optimizer]
HE, XAVIER = math.sqrt(2.0), 1.0


def sgd(lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0) -> Factory:
    """Stochastic gradient descent with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(lr: float = 1e-3, eps: float = 1e-8) -> Factory:
    """Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, eps=eps)


class Supervised(LightningModule):
    """Trains `net` on (input, target) pairs.

    Args:
        net: The network.
        optimizer: Makes the optimizer of the parameters that require a gradient.
        loss: The loss of (output, target).
        schedule: Makes a learning-rate schedule, stepped at every step.
        events: What happens to the module just before a given step.
        feed: What becomes of the inputs at a given step.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Factory,
        loss: Loss = F.cross_entropy,
        *,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        events: Mapping[int, Callable[[Supervised], object]] | None = None,
        feed: Callable[[int, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.schedule = optimizer, schedule
        self.loss, self.feed = loss, feed
        self.events = dict(events or {})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the event of this step happen, once."""
        event = self.events.pop(self.global_step, None)
        if event is not None:
            event(self)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Change the inputs as the case wants it."""
        inputs, target = batch
        return (inputs if self.feed is None else self.feed(self.global_step, inputs)), target

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        return self.loss(self.net(inputs), target)

    def configure_optimizers(self) -> Any:
        """The optimizer, with its schedule if there is one."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def on_digits(
    net: nn.Module, optimizer: Factory, batch: int = 64, gradient_clip_val: float | None = None, **options: Any
) -> Task:
    """Classify the digits."""
    trainer = {} if gradient_clip_val is None else {"gradient_clip_val": gradient_clip_val}
    return Task(Supervised(net, optimizer, **options), loader(*digits(), batch=batch), trainer)


def weighted(weight: float, loss: Loss = F.cross_entropy) -> Loss:
    """The same loss, scaled."""
    return lambda output, target: weight * loss(output, target)


def per_token(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all positions of a sequence."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def squared_to_one_hot(output: Tensor, target: Tensor) -> Tensor:
    """Squared error between class scores and one-hot labels."""
    return F.mse_loss(output, F.one_hot(target, output.shape[-1]).to(output.dtype))


def layers(net: nn.Module) -> list[nn.Linear | nn.Conv2d | nn.ConvTranspose2d]:
    """The linear and convolutional layers, in order of definition."""
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]


def with_gain(net: nn.Module, gain: float) -> nn.Module:
    """Draw every weight from N(0, gain^2 / fan_in) and clear the biases."""
    for layer in layers(net):
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return net


def scale_layer(net: nn.Module, index: int, factor: float) -> nn.Module:
    """Multiply the weights of one layer."""
    with torch.no_grad():
        layers(net)[index].weight.mul_(factor)
    return net


def shift_bias(net: nn.Module, index: int, value: float) -> nn.Module:
    """Fill the bias of one layer."""
    bias = layers(net)[index].bias
    if bias is not None:
        nn.init.constant_(bias, value)
    return net


def mlp(
    depth: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    gain: float | None = None,
    width: int = 64,
    inputs: int = 64,
    outputs: int = 10,
    norm: Callable[[int], nn.Module] | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """A perceptron of `depth` linear layers; PyTorch's own initialisation unless a gain is given."""
    net = nn.Sequential()
    for size in [inputs] + [width] * (depth - 2):
        net.append(nn.Linear(size, width, bias=bias))
        if norm is not None:
            net.append(norm(width))
        net.append(activation())
    net.append(nn.Linear(width, outputs, bias=bias))
    if gain is not None:
        with_gain(net, gain)
    return net


class Residual(nn.Module):
    """The input plus what `body` makes of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the skip."""
        branch: Tensor = self.body(x)
        return x + branch


class Detached(nn.Module):
    """Runs `body` and cuts the graph behind it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """The output, without history."""
        output: Tensor = self.body(x)
        return output.detach()


class NoGrad(nn.Module):
    """Runs `body` without recording a graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The output, never part of a graph."""
        output: Tensor = self.body(x)
        return output


def pretrained(net: nn.Module, inputs: Tensor, labels: Tensor, steps: int = 150) -> nn.Module:
    """Train `net` for a moment, as the start of a fine-tuning case."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(inputs[chosen]), labels[chosen]))
        optimizer.step()
    optimizer.zero_grad()
    return net


def frozen(net: nn.Module) -> nn.Module:
    """Exclude all parameters from training."""
    return net.requires_grad_(False)
