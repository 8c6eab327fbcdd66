"""Parameters that have no readable numbers cost themselves alone: all others are watched, and nothing is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.layers import named_layers
from tests.tasks import Classifier, digits, fit, read_events, scalars, session_of, small_net

NORMS = "gradwatch/total_norm"


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


ODD: dict[str, Callable[[], nn.Parameter]] = {
    "8 bits": lambda: frozen(torch.zeros(4, 4).to(torch.float8_e4m3fn)),
    "8 bits, another": lambda: frozen(torch.zeros(4, 4).to(torch.float8_e5m2)),
    "meta": lambda: frozen(torch.empty(4, 4, device="meta")),
    "nested": lambda: frozen(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)])),
    "sparse": lambda: frozen(torch.eye(4).to_sparse()),
    "compressed": lambda: frozen(torch.eye(4).to_sparse_csr()),
    "integers": lambda: frozen(torch.ones(3, dtype=torch.int32)),
}


class Odd(Classifier):  # type: ignore[misc, valid-type]
    """A network with one more parameter, the first of its optimizer, or of none."""

    def __init__(self, make: Callable[[], nn.Parameter] | None, in_optimizer: bool) -> None:
        super().__init__(small_net())
        self.in_optimizer = in_optimizer
        odd = None if make is None else make()
        if odd is not None and odd.is_meta:  # which no module may have that is moved to a device
            object.__setattr__(self, "odd", odd)
        else:
            self.odd = odd

    def configure_optimizers(self) -> Any:
        odd = [self.odd] if self.odd is not None and self.in_optimizer else []
        return torch.optim.Adam([*odd, *self.net.parameters()], lr=1e-3)


def norms(directory: Path, model: pl.LightningModule, **options: Any) -> list[float]:
    """The total norm of every step, of a run in which GradWatch says nothing about itself."""
    watch = GradWatch(histogram_every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(watch, model, directory=directory, max_steps=8, log_every_n_steps=1, **options)
    assert [w for w in caught if w.category is GradWatchWarning] == []
    assert not session_of(watch).is_off
    return list(scalars(read_events(directory), NORMS).values())


@pytest.mark.filterwarnings("ignore:.*is in beta state.*", "ignore:.*in prototype stage.*")
@pytest.mark.parametrize("in_optimizer", [True, False], ids=["in the optimizer", "beside it"])
@pytest.mark.parametrize("kind", ODD)
def test_a_parameter_without_readable_numbers_costs_itself_alone(tmp_path: Path, kind: str, in_optimizer: bool) -> None:
    expected = norms(tmp_path / "plain", Odd(None, in_optimizer), accumulate_grad_batches=2)
    assert len(expected) == 8
    assert norms(tmp_path / "odd", Odd(ODD[kind], in_optimizer), accumulate_grad_batches=2) == expected


def test_a_parameter_with_a_word_of_distributed_ones_is_a_plain_one(tmp_path: Path) -> None:
    class Placed(nn.Parameter):
        placements = ("upper", "left")

    model = Odd(None, True)
    layer: Any = model.net[0]
    layer.weight = Placed(layer.weight.data)
    assert norms(tmp_path / "placed", model) == norms(tmp_path / "plain", Odd(None, True))


def test_what_an_optimizer_holds_no_more_is_watched_no_more(tmp_path: Path) -> None:
    class Emptied(Odd):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            groups = self.trainer.optimizers[0].param_groups
            if batch_idx == 3:
                self.kept, groups[0]["params"] = groups[0]["params"], []
            elif batch_idx == 6:
                groups[0]["params"] = self.kept

    watch, model = GradWatch(), Emptied(None, True)
    fit(watch, model, directory=tmp_path, max_steps=8, log_every_n_steps=1)
    assert not session_of(watch).is_off
    assert list(scalars(read_events(tmp_path), NORMS)) == [0, 1, 2, 6, 7]


def test_memory_that_is_freed_before_the_step_is_not_read(tmp_path: Path) -> None:
    class Offload(pl.Callback):
        """Frees the weights after the backward pass, and brings them back before the step, behind GradWatch."""

        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.kept = [p.detach().clone() for p in pl_module.parameters()]
            for p in pl_module.parameters():
                p.untyped_storage().resize_(0)

        def on_before_optimizer_step(self, trainer: Any, pl_module: pl.LightningModule, optimizer: Any) -> None:
            for p, kept in zip(pl_module.parameters(), self.kept, strict=True):
                p.untyped_storage().resize_(kept.untyped_storage().nbytes())
                p.data.copy_(kept)

    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="leaves out .* the memory of a weight has been freed") as caught:
        fit(watch, Odd(None, True), directory=tmp_path, callbacks=(Offload(),), max_steps=8, log_every_n_steps=1)
    assert not session_of(watch).is_off
    assert len(scalars(read_events(tmp_path), NORMS)) == 8
    assert {str(w.message).split(" from now on")[0] for w in caught if w.category is GradWatchWarning} == {
        "GradWatch leaves out the weight norms",
        "GradWatch leaves out the size of the updates",
    }


def test_a_module_may_be_called_as_torch_calls_its_parametrizations() -> None:
    model = nn.Module()
    model.parametrizations = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.hidden = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert list(named_layers(model)) == ["parametrizations.0", "parametrizations.1", "hidden"]


def test_a_loss_that_is_an_object_is_not_known(tmp_path: Path) -> None:
    class Losses:
        def __init__(self, *parts: Tensor) -> None:
            self.parts = parts

        def backward(self) -> None:
            sum(self.parts).backward()  # type: ignore[union-attr]

        def detach(self) -> Any:
            return self

    class Several(Odd):
        def __init__(self) -> None:
            super().__init__(None, True)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(Losses(loss, 0.0 * loss))  # type: ignore[arg-type]
            optimizer.step()

        def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    assert norms(tmp_path / "object", Several()) == norms(tmp_path / "plain", Odd(None, True))


def test_one_that_comes_too_late_to_hear_of_the_end_does_nothing(tmp_path: Path) -> None:
    class Late(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.callbacks.append(watch)

    watch, model = GradWatch(), Odd(None, True)
    trainer = fit(None, model, digits(), callbacks=(Late(),), max_steps=8)
    assert trainer.global_step == 8
    assert watch in trainer.callbacks  # type: ignore[attr-defined]
    for module in model.modules():
        assert not module._forward_hooks
        assert not getattr(module._forward_hooks, "__dict__", {})
