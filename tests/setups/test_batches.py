"""Batches of every kind: training goes on as without GradWatch, and what is said of a batch is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch, GradWatchWarning
from tests.tasks import Classifier, digits, quiet_trainer, session_of, small_net, watchers_of

BAD_STEP = 5


@dataclass
class Batch:
    pixels: Any
    digit: Tensor


class Bag:
    def __init__(self, pixels: Tensor, digit: Tensor) -> None:
        self._held = {"digit": digit, "more": [{"pixels": pixels}]}

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Refusing(Tensor):
    """Takes part in nothing that it has not been asked for by its owner."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.as_subclass:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise TypeError(f"{func} is not for me")


Z = torch.zeros(1)
PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "dataclass": (Batch, lambda b: (b.pixels, b.digit)),
    "object": (Bag, lambda b: (b._held["more"][0]["pixels"], b._held["digit"])),
    "behind four others": (lambda x, y: (Z, Z, Z, Z, x, y), lambda b: b[-2:]),
    "strided nested": (
        lambda x, y: (torch.nested.nested_tensor(list(x[:, None])), y),
        lambda b: (torch.nested.to_padded_tensor(b[0], 0.0)[:, 0], b[1]),
    ),
    "mkldnn": (lambda x, y: (x.to_mkldnn(), y), lambda b: (b[0].to_dense(), b[1])),
    "refusing": (lambda x, y: (x.as_subclass(Refusing), y), lambda b: (Tensor.as_subclass(b[0], Tensor), b[1])),
    "a wrapper": (lambda x, y: (TwoTensor(x, x), y), lambda b: (b[0].a, b[1])),
    "with many numbers": (lambda x, y: (x, y, [list(range(2048))] * 64), lambda b: b[:2]),
}  # fmt: skip
UNSEEN = {"mkldnn", "a wrapper"}


class Unpacking(Classifier):  # type: ignore[misc, valid-type]
    def __init__(self, unpack: Callable[[Any], Any]) -> None:
        super().__init__(small_net())
        self.unpack = unpack

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pixels, digit = self.unpack(batch)
        return nn.functional.cross_entropy(self.net(pixels), digit)


def train(pack: str, watch: GradWatch | None, bad: bool = False, steps: int = 8) -> Unpacking:
    data = digits()
    pixels, digit = data.dataset[:]
    if bad:
        pixels = pixels.clone()
        pixels[64 * BAD_STEP + 3, 5] = math.nan
    put, take = PACKS[pack]

    def collate(rows: list[tuple[Tensor, Tensor]]) -> Any:
        return put(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))

    loader: Any = DataLoader(TensorDataset(pixels, digit), batch_size=64, collate_fn=collate)
    model = Unpacking(take)
    quiet_trainer(*([watch] if watch else []), max_steps=steps).fit(model, loader)
    return model


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage.*")
@pytest.mark.parametrize("pack", PACKS)
def test_training_goes_on_as_without_us_whatever_a_batch_is_made_of(pack: str) -> None:
    watch = GradWatch()  # a warning would be an error here
    weights = [list(train(pack, each).parameters()) for each in (watch, None)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))
    assert not session_of(watch).is_off
    (watcher,) = watchers_of(watch)
    assert watcher.sampling.num_steps == 8


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage.*")
@pytest.mark.parametrize("pack", PACKS)
def test_a_bad_batch_is_blamed_where_it_was_looked_at_and_is_never_called_finite(pack: str) -> None:
    watch = GradWatch(on_nonfinite="skip")
    with pytest.warns(GradWatchWarning, match="NaN or infinite values"):
        train(pack, watch, bad=True)
    (alert,) = watch.alerts
    assert alert.step == BAD_STEP
    assert alert.cause == ("unstable_op" if pack in UNSEEN else "bad_data")
    assert ("not all of the batch could be looked at" in alert.evidence) == (pack in UNSEEN)
    assert "while the batch" not in alert.evidence
