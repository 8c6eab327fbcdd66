"""Small networks in trouble, and what a remedy does to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch.core.history.profile import decades_lost, positive
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.trials.model import CannotApply, TrialModel
from lightning_gradwatch.trials.remedies import REMEDIES

KEYS = {remedy.key: remedy for remedy in REMEDIES}
Batch = tuple[Tensor, Tensor]


def digits(features: int = 16, classes: int = 4, count: int = 32) -> Batch:
    source = torch.Generator().manual_seed(3)
    return torch.randn(count, features, generator=source), torch.randint(classes, (count,), generator=source)


def images(channels: int = 1, count: int = 8) -> Batch:
    source = torch.Generator().manual_seed(4)
    return torch.randn(count, channels, 8, 8, generator=source), torch.randint(4, (count,), generator=source)


def sequences(length: int = 40, features: int = 4, count: int = 8) -> Batch:
    source = torch.Generator().manual_seed(5)
    return torch.randn(count, length, features, generator=source), torch.randint(4, (count,), generator=source)


def mlp(depth: int, activation: Callable[[], nn.Module], width: int = 16) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential()
    for _ in range(depth - 1):
        net.extend([nn.Linear(width, width), activation()])
    return net.append(nn.Linear(width, 4))


def convolutions(depth: int, activation: Callable[[], nn.Module] = nn.ReLU) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential()
    for index in range(depth):
        net.extend([nn.Conv2d(6 if index else 1, 6, 3, padding=1), activation()])
    return net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)])


class LastStep(nn.Module):
    """Answers from the last output of a recurrent layer."""

    def __init__(self, rnn: nn.Module, outputs: int = 4) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(16 * (2 if getattr(rnn, "bidirectional", False) else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(x)[0][:, -1])
        return scores


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def trial_model(model: nn.Module, batch: Any, loss: Any = cross_entropy, **facts: Any) -> TrialModel:
    return TrialModel(copy.deepcopy(model), batch, loss=loss, **facts)


def treated(key: str, model: Any, batch: Any, loss: Any = cross_entropy, **facts: Any) -> Any:
    """A copy of the model after the remedy, of which the random numbers are always the same."""
    ill = trial_model(model, batch, loss, **facts)
    torch.manual_seed(7)
    KEYS[key].apply(ill)
    return ill


def refused(key: str, model: Any, batch: Any, loss: Any = cross_entropy, **facts: Any) -> str:
    """The reason for which a remedy is not applied; the model is as it was."""
    ill = trial_model(model, batch, loss, **facts)
    tree = [(name, type(m), dict(vars(m)).keys(), hooks(m)) for name, m in ill.model.named_modules()]
    state = {name: tensor.clone() for name, tensor in ill.model.state_dict().items()}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(CannotApply) as reason:
        KEYS[key].apply(ill)
    assert torch.equal(torch.get_rng_state(), before)
    assert [(name, type(m), dict(vars(m)).keys(), hooks(m)) for name, m in ill.model.named_modules()] == tree
    assert_same(ill.model.state_dict(), state)
    assert {f: getattr(ill, f) for f in _FACTS} == {**_FACTS, **{f: v for f, v in facts.items() if f in _FACTS}}
    return str(reason.value)


_FACTS = {
    "lr_scale": 1.0, "warmup_steps": 0, "clip": None, "autocast": None, "loss_scale": False, "adam_eps": None,
    "weight_decay": None,
}  # fmt: skip


def hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


def pasted(key: str, model: nn.Module, **names: Any) -> Any:
    """A copy of the model after the code that a user is shown for any model, as it stands."""
    return after(KEYS[key].code, model, **names)


def after(code: str, model: nn.Module, **names: Any) -> Any:
    """A copy of the model after these lines, of which the random numbers are those of ``treated``."""
    model = copy.deepcopy(model)
    torch.manual_seed(7)
    exec(code, {"model": model, "nn": nn, "torch": torch, **names})
    return model


def learn(model: nn.Module, batch: Any, loss: Any = cross_entropy) -> Tensor:
    """One backward pass; the outputs' shape does not matter to it."""
    model.zero_grad()
    value: Tensor = loss(model, batch)
    value.backward()
    return value.detach()


def decades(model: nn.Module, batch: Any, loss: Any = cross_entropy) -> float:
    """Decades of gradient lost from the last layers to the first, by the detector's own definition."""
    watcher = Watcher(model, torch.optim.SGD(model.parameters(), lr=0.1))
    watcher.arm()
    value = learn(model, batch, loss)
    watcher.observe(loss=value)
    watcher.flush()
    lost = decades_lost(list(watcher.profile.values()))
    assert lost is not None
    return lost


def decades_through_time(model: nn.Module, batch: Any, loss: Any = cross_entropy) -> float:
    probe = make_probe(model)
    probe.attach()
    learn(model, batch, loss)
    norms = max((s.tolist() for s in probe.sequences().values()), key=len)
    probe.detach()
    lost = decades_lost(positive(norms))
    assert lost is not None
    return lost
