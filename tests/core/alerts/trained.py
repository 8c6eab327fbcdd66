"""Networks of digits, trained by hand under the eyes of a watcher."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradwatch.core.batch import check_batch
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.records import Alert, Cause
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from tests.tasks import deep_net, digits

Feed = Callable[[int, Tensor], Tensor]


@functools.cache
def batches() -> list[tuple[Tensor, ...]]:
    return list(digits())


def classify(output: Tensor, digit: Tensor) -> Tensor:
    return functional.cross_entropy(output.float(), digit)


def watched(
    net: nn.Module,
    steps: int,
    optimizer: Any = torch.optim.SGD,
    loss_of: Callable[[Tensor, Tensor], Tensor] = classify,
    feed: Feed = lambda step, pixels: pixels,
    every: int = 1,
    is_traced: bool = False,
    **options: Any,
) -> list[Alert]:
    """The alerts of a hand-written loop on the digits, those that opened; the way back is measured if traced."""
    made, probe = optimizer(net.parameters(), **{"lr": 0.1, **options}), make_probe(net)
    watcher = Watcher(net, made, Settings(Schedule(20, every)), probe=probe)
    alerts: list[Alert] = []
    for step in range(steps):
        pixels, digit = batches()[step % len(batches())]
        pixels = feed(step, pixels).to(next(net.parameters()).dtype)
        watcher.arm()
        loss = loss_of(net(pixels), digit)
        made.zero_grad()
        if is_traced:
            probe.account.begin_backward(loss)
        loss.backward()
        if is_traced:
            probe.account.end_backward()
        alerts += watcher.observe(loss=loss, inputs=check_batch(pixels)).alerts
        made.step()
    alerts += watcher.flush().alerts
    return [alert for alert in alerts if alert.until_step is None]


def explained(alerts: list[Alert], kind: str, cause: Cause) -> Alert:
    """The first alert of that kind, after a check of its words."""
    assert (kind, cause) in [(a.kind, a.cause) for a in alerts]
    for alert in alerts:
        assert alert.cause in get_args(Cause)
        assert alert.remedies
        assert all(remedy in alert.message for remedy in alert.remedies)
        assert alert.evidence[1:] in alert.message
        what, _, rest = alert.message.partition(alert.evidence[1:])
        assert re.search(rf"step {alert.step}\b", what)
        assert "Try: " in rest
        assert not re.search(r"\bnan\b|\binf\b|[{}]", alert.message)
    first = next(a for a in alerts if (a.kind, a.cause) == (kind, cause))
    assert alerts[0].kind == kind
    return first


def scaled(net: nn.Sequential, factor: float, *places: int) -> nn.Sequential:
    """Every linear layer, or those at some places, with weights ``factor`` times as large."""
    with torch.no_grad():
        for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
            layer.weight.mul_(factor if not places or i in places else 1.0)
            layer.bias.zero_()
    return net


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def relu_net(depth: int = 12) -> nn.Sequential:
    return deep_net(nn.ReLU, depth, he_init=True)


def random_labels(output: Tensor, digit: Tensor) -> Tensor:
    return functional.cross_entropy(output, torch.arange(len(digit)) % 10)


class Reader(nn.Module):
    """Reads 32 steps of noise; the last output judges."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.judge = nn.RNN(2, 16, nonlinearity="relu" if gain > 1 else "tanh"), nn.Linear(16, 10)
        nn.init.orthogonal_(self.read.get_parameter("weight_hh_l0"), gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.judge(self.read(x.reshape(len(x), 32, 2).transpose(0, 1))[0][-1])
        return out
