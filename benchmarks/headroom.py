"""Does the headroom of the learning rate warn before the loss leaves, and before the norm does?

Run ``python -m benchmarks.headroom``. First quadratics, against a dense line search. Then six trainings on digits from
scikit-learn whose rate rises by 3 % per step until the loss leaves, and the same six at a rate at which they learn. At
each step the headroom is measured on the step's own batch; what is shown is the median of five steps. Beside it stand
rules by a spike of the loss and of the gradient norm: six robust deviations above the median of 128 steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_gradwatch import lr_headroom

WINDOW, SPIKE, MEMORY, WARM_UP = 5, 6.0, 128, 20
RISE = 1.03
NEVER = math.inf


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def deep() -> nn.Module:
    """Eight layers of tanh."""
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def normalised() -> nn.Module:
    """Batch normalisation and dropout."""
    block = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*block, nn.Linear(64, 10))


class Attending(nn.Module):
    """A transformer over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape (batch, 64)."""
        out: Tensor = self.head(self.block(self.embed(x.unflatten(1, (8, 8)))).mean(1))
        return out


Make = Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer]


def sgd(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Plain."""
    return torch.optim.SGD(parameters, lr=rate)


def momentum(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With weight decay."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4)


def adam(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With decoupled weight decay."""
    return torch.optim.AdamW(parameters, lr=rate)


TASKS: dict[str, tuple[Callable[[], nn.Module], Make, float]] = {
    "MLP, SGD": (mlp, sgd, 0.1),
    "MLP, momentum": (mlp, momentum, 0.02),
    "MLP, AdamW": (mlp, adam, 1e-3),
    "tanh of 8 layers, SGD": (deep, sgd, 0.1),
    "BatchNorm and dropout, momentum": (normalised, momentum, 0.05),
    "transformer, AdamW": (Attending, adam, 1e-3),
}
"""Network, optimizer, and a rate at which it learns."""


@dataclass
class Story:
    """A training, step by step."""

    losses: list[float]
    norms: list[float]
    headrooms: list[float]

    @property
    def medians(self) -> list[float]:
        """Of the last five that could be told."""
        known = [[h for h in self.headrooms[max(i - WINDOW + 1, 0) : i + 1] if not math.isnan(h)]
                 for i in range(len(self.headrooms))]  # fmt: skip
        return [statistics.median(part) if part else math.nan for part in known]

    @property
    def left_at(self) -> float:
        """The first step from which on the loss stays twice above the lowest median of ten steps before."""
        smooth = [statistics.median(self.losses[max(i - 4, 0) : i + 1]) for i in range(len(self.losses))]
        lowest = math.inf
        for step, loss in enumerate(smooth):
            if step > WARM_UP and not loss <= max(2 * lowest, lowest + 0.5):
                return step
            lowest = min(lowest, loss)
        return NEVER


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of digits, for ever."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    random = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(inputs), generator=random).split(64)[:-1]:
            yield inputs[part], targets[part]


def train(name: str, steps: int, rise: float, seed: int) -> Story:
    """Train, at a rate that rises by a factor per step, until the loss has left."""
    make, choose, rate = TASKS[name]
    torch.manual_seed(seed)
    model = make()
    optimizer, loss_fn, story = choose(list(model.parameters()), rate), nn.CrossEntropyLoss(), Story([], [], [])
    for _, (inputs, targets) in zip(range(steps), batches(seed), strict=False):
        measured = lr_headroom(model, (inputs, targets), loss_fn, optimizer=optimizer)
        story.headrooms += measured.multiples
        loss = loss_fn(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        story.losses.append(loss.item())
        story.norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
        if rise > 1 and (not math.isfinite(loss.item()) or story.left_at < NEVER):
            break
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= rise
    return story


def spikes_of(values: Sequence[float]) -> list[int]:
    """The steps whose value stands out of those before."""
    found = []
    for step in range(WARM_UP, len(values)):
        past = values[max(step - MEMORY, 0) : step]
        centre = statistics.median(past)
        spread = 1.4826 * statistics.median(abs(v - centre) for v in past)
        if not values[step] <= centre + SPIKE * spread:
            found.append(step)
    return found


def first_spike(values: Sequence[float]) -> float:
    """The first of them."""
    return next(iter(spikes_of(values)), NEVER)


def first_low(story: Story) -> float:
    """The first step, after the start, at which the median is below 1."""
    return next((s for s, m in enumerate(story.medians) if s >= WARM_UP and m < 1), NEVER)


def quadratics() -> None:
    """The error against the exact value, and against a dense line search for what has none."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(30, 30))[0]
    hessian = rotation @ torch.diag(torch.logspace(-2, 1, 30)) @ rotation.T

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(30))

        def forward(self) -> Tensor:
            value: Tensor = 0.5 * self.w @ hessian @ self.w
            return value

    for name, choose in {"SGD": sgd, "momentum": momentum, "AdamW": adam}.items():
        errors = []
        for rate in (0.02, 0.05, 0.1, 0.15):
            model = Quadratic()
            optimizer = choose(list(model.parameters()), rate)
            for _ in range(3):  # for momentum and moments that are not empty
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
            found = lr_headroom(model, 0, lambda m, _: m(), optimizer=optimizer).multiples[0]
            exact = _line_search(model, optimizer)
            if 0 < found < math.inf:
                errors.append(abs(found / exact - 1))
            elif (found == 0) != (exact <= 1 / 16):
                errors.append(math.inf)
        print(f"quadratic, {name:9} largest error {max(errors, default=0.0):.2%} of {len(errors)} measurements")


def _line_search(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """The multiple at which the loss is back, from 200,000 points in double precision."""
    start = [p.detach().clone() for p in model.parameters()]
    state = optimizer.state_dict()
    optimizer.zero_grad()
    loss = model()
    loss.backward()
    optimizer.step()
    updates = [(p.detach() - s) for p, s in zip(model.parameters(), start, strict=True)]
    weights, update = start[0].double(), updates[0].double()
    hessian = torch.autograd.functional.hessian(lambda w: _at(model, w), start[0]).double()
    multiples = torch.linspace(1e-4, 20, 200_000, dtype=torch.double)
    rises = multiples * (weights @ hessian @ update) + 0.5 * multiples**2 * (update @ hessian @ update)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state)
    above = (rises >= 0).nonzero()
    return float(multiples[above[0, 0]]) if len(above) else math.inf


def _at(model: nn.Module, weights: Tensor) -> Tensor:
    found: Tensor = torch.func.functional_call(model, {"w": weights}, ())
    return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each training (default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=200, help="of a healthy training (default: 200)")
    arguments = parser.parse_args()
    quadratics()
    print(f"\n{'steps before the loss leaves':34} {'headroom':>9} {'loss spike':>11} {'norm spike':>11}   left at")
    for name in TASKS:
        for seed in arguments.seeds:
            story = train(name, 600, RISE, seed)
            left = min(story.left_at, len(story.losses) - 1)
            leads = [left - first for first in (first_low(story), first_spike(story.losses), first_spike(story.norms))]
            told = [f"{lead:.0f}" if math.isfinite(lead) else "never" for lead in leads]
            print(f"{name:34} {told[0]:>9} {told[1]:>11} {told[2]:>11}   step {left}")
    title = f"healthy: alarms in {arguments.steps} steps"
    print(f"\n{title:34} {'headroom':>9} {'loss spike':>11} {'norm spike':>11}   single ones below 1, median headroom")
    for name in TASKS:
        for seed in arguments.seeds:
            story = train(name, arguments.steps, 1.0, seed)
            low = sum(m < 1 for m in story.medians[WARM_UP:])
            single = sum(h < 1 for h in story.headrooms[WARM_UP:])
            spikes = [len(spikes_of(values)) for values in (story.losses, story.norms)]
            median = statistics.median(story.medians)
            print(f"{name:34} {low:9} {spikes[0]:11} {spikes[1]:11}   {single}, {median:.2g}")


if __name__ == "__main__":
    main()
