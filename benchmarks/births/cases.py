"""Networks in which NaN or infinity is born, each with a healthy twin; the line is marked by ``# born``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BATCH, SIZE = 8, 4
Function = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    """A function of the user's own between two linear layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def net(function: Function) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, SIZE), Layer(function), nn.Linear(SIZE, 3))


@dataclass
class Case:
    """A birth and its healthy twin: each a model, a batch, a loss function and further arguments."""

    sick: Callable[[], tuple[Any, ...]]
    healthy: Callable[[], tuple[Any, ...]]
    stage: str
    what: str
    module: str = "1"
    samples: tuple[int, ...] = ()
    is_compiled: bool = False
    options: Callable[[nn.Module], dict[str, Any]] = field(default=lambda _: {})

    def given(self, model: nn.Module, is_sick: bool) -> dict[str, Any]:
        """The further arguments; those of a twin without any are none."""
        given = self.options(model)
        return given if is_sick else {"optimizer": torch.optim.Adam(model.parameters())} if "optimizer" in given else {}


def of(function: Function, batch: Any = None, loss_fn: Any = None) -> Callable[[], tuple[Any, ...]]:
    def made() -> tuple[Any, ...]:
        return net(function), batch or (inputs(), labels()), loss_fn or nn.CrossEntropyLoss()

    return made


def inputs() -> Tensor:
    return torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1))


def labels(value: int | None = None) -> Tensor:
    return torch.arange(BATCH) % 3 if value is None else torch.full((BATCH,), value)


def log_zero(x: Tensor) -> Tensor:
    return torch.log(x * 0)  # born


def log_safe(x: Tensor) -> Tensor:
    return torch.log(x.abs() + 1)


def root_of_squares(x: Tensor) -> Tensor:
    return x + torch.sqrt((x * 0).square().sum(1, keepdim=True))  # born


def root_safe(x: Tensor) -> Tensor:
    return x + torch.sqrt(x.square().sum(1, keepdim=True) + 1e-6)


def spread(x: Tensor) -> Tensor:
    zero = x - x.detach()
    return zero / zero.std(1, keepdim=True)  # born


def spread_safe(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)


def masked(x: Tensor, rows: int) -> Tensor:
    mask = torch.zeros(BATCH, SIZE)
    mask[:rows] = -torch.inf
    mask[:, 0] = -torch.inf
    return torch.softmax(x + mask, dim=1)  # born


def exploded(x: Tensor) -> Tensor:
    return torch.exp(x * 1000)  # born


def in_half(x: Tensor, factor: float) -> Tensor:
    return (x * factor).half().float()  # born


def bad_branch(x: Tensor) -> Tensor:
    safe = x.abs() * 0
    return torch.where(safe > 0, torch.log(safe), x)  # born


def good_branch(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.log(x.abs() + 1), x)


class Custom(torch.autograd.Function):
    """A backward pass of the user's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: float) -> Tensor:
        ctx.divisor = torch.tensor(divisor)
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad / ctx.divisor, None  # born


def custom(x: Tensor, divisor: float) -> Tensor:
    return Custom.apply(x, divisor)  # type: ignore[no-untyped-call, no-any-return]


def attention(x: Tensor, rows: int) -> Tensor:
    mask = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    mask[:rows] = True
    scores = (x @ x.T).masked_fill(mask, -torch.inf)
    return scores.softmax(-1) @ x  # born


def mean_of_nothing(x: Tensor, least: float) -> Tensor:
    return x + x[x > least].mean()  # born


def with_metric(x: Tensor) -> Tensor:
    _ = torch.log(x * 0 - 1).mean()  # matters to nobody
    return x


def with_one_bad_sample(value: float) -> tuple[Tensor, Tensor]:
    batch = inputs()
    batch[3] = value
    return batch, labels()


def loss_by_division(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum() / (targets == 7).sum()  # born


class Recurrent(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.cell, self.head, self.start = nn.RNNCell(SIZE, SIZE), nn.Linear(SIZE, 3), start

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(BATCH, SIZE)
        for step in range(5):
            state = self.cell(x, state)
            state = state / (self.start - step)  # born
        return self.head(state)  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.inner = net(function)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


def recurrent(start: float) -> tuple[Any, ...]:
    return Recurrent(start), (inputs(), labels()), nn.CrossEntropyLoss()


def checkpointed(function: Function) -> tuple[Any, ...]:
    return Checkpointed(function), (inputs(), labels()), nn.CrossEntropyLoss()


def compiled(function: Function) -> tuple[Any, ...]:
    model = net(function)
    model[1] = torch.compile(model[1], backend="eager")  # type: ignore[assignment]
    return model, (inputs(), labels()), nn.CrossEntropyLoss()


def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.half() * 1e4).float().square().mean() * 1e-8


def adam(eps: float) -> Callable[[nn.Module], dict[str, Any]]:
    """An optimizer whose second moment is 0 for a parameter without a gradient."""
    return lambda model: {"optimizer": torch.optim.Adam(model.parameters(), lr=0.1, eps=eps)}


def frozen_out(x: Tensor) -> Tensor:
    return x * 0


def under_autocast(scale: float) -> Callable[[], tuple[Any, ...]]:
    """A linear layer whose outputs leave the range of half precision where they are large."""

    def made() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3))
        nn.init.constant_(cast(Tensor, model[1].weight), scale)
        return model, (inputs().abs() * 100, labels()), nn.CrossEntropyLoss()

    return made


def after_a_slip(rate: float) -> Callable[[], tuple[Any, ...]]:
    """Weights after a step at a rate that has slipped, still finite."""

    def made() -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(SIZE, SIZE), Layer(torch.relu), nn.Linear(SIZE, 3))
        optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
        loss_fn(model(inputs()), labels()).backward()
        optimizer.step()
        return model, (inputs(), labels()), loss_fn

    return made


CASES: dict[str, Case] = {
    "log_of_zero": Case(of(log_zero), of(log_safe), "forward", "the logarithm of 0"),
    "root_of_squares": Case(of(root_of_squares), of(root_safe), "backward", "derivative of sqrt, a division by 0"),
    "division": Case(of(spread), of(spread_safe), "forward", "0 / 0 in 32 of 32 elements"),
    "masked_rows": Case(
        of(lambda x: masked(x, 2)), of(lambda x: masked(x, 0)), "forward", "every entry is -inf", samples=(0, 1)
    ),
    "exp": Case(of(exploded), of(torch.tanh), "forward", "exp of"),
    "half_overflow": Case(
        of(lambda x: in_half(x, 1e6)), of(lambda x: in_half(x, 10)), "forward", "does not fit into float16"
    ),
    "bad_sample": Case(
        of(torch.tanh, with_one_bad_sample(torch.nan)), of(torch.tanh), "input", "NaN in 4 of 32", "batch[0]", (3,)
    ),
    "huge_sample": Case(
        of(lambda x: x.square(), with_one_bad_sample(1e30)),
        of(lambda x: x.square(), with_one_bad_sample(1.0)),
        "forward",
        "exceeds the largest number of float32",
        samples=(3,),
    ),
    "labels_ignored": Case(
        of(torch.tanh, (inputs(), labels(-100))), of(torch.tanh), "loss", "all of them are ignored", ""
    ),
    "custom_backward": Case(
        of(lambda x: custom(x, 0.0)), of(lambda x: custom(x, 1.0)), "backward", "derivative of custom, "
    ),
    "optimizer": Case(
        of(frozen_out), of(frozen_out), "optimizer", "Adam, 0 / 0", "0.weight", options=adam(0.0)
    ),
    "loss_head": Case(
        of(torch.tanh, None, loss_by_division),
        of(torch.tanh, (inputs(), labels(7)), loss_by_division),
        "loss",
        "a division by 0",
        "",
    ),
    "where": Case(of(bad_branch), of(good_branch), "backward", "derivative of log, 0 / 0"),
    "attention_mask": Case(
        of(lambda x: attention(x, 1)), of(lambda x: attention(x, 0)), "forward", "every entry is -inf", samples=(0,)
    ),
    "loss_scale": Case(
        of(torch.tanh, None, scaled), of(torch.tanh, None, nn.CrossEntropyLoss()), "backward",
        "does not fit into float16", "",
        options=lambda _: {"loss_scale": 2.0**40},
    ),
    "recurrent": Case(lambda: recurrent(2), lambda: recurrent(9), "forward", "a division by 0", ""),
    "checkpointed": Case(lambda: checkpointed(log_zero), lambda: checkpointed(log_safe), "forward", "0", "inner.1"),
    "checkpointed_backward": Case(
        lambda: checkpointed(bad_branch), lambda: checkpointed(good_branch), "backward", "of log", "inner.1"
    ),
    "compiled": Case(lambda: compiled(log_zero), lambda: compiled(log_safe), "forward", "0", "1", is_compiled=True),
    "autocast": Case(
        under_autocast(1e4), under_autocast(0.1), "forward", "exceeds the largest number of float16",
        samples=(0, 1, 2, 4, 5, 6, 7), options=lambda _: {"precision": torch.float16},
    ),
    "slip_of_rate": Case(
        after_a_slip(1e20), after_a_slip(1e-3), "forward", "exceeds the largest number", "2", (0, 1, 2, 3, 5, 6)
    ),
    "mean_of_nothing": Case(
        of(lambda x: mean_of_nothing(x, 1e9)), of(lambda x: mean_of_nothing(x, -1e9)), "forward", "a mean over nothing"
    ),
}  # fmt: skip
