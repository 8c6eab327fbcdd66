"""The loss of a training step, whoever computes it: a LightningModule, a loss function, or the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.core._check import refuse


def is_lightning(model: nn.Module) -> bool:
    """Whether the model brings its own training step and optimizer."""
    return callable(getattr(model, "training_step", None)) and callable(getattr(model, "configure_optimizers", None))


def is_manual(model: nn.Module) -> bool:
    """Whether the model is a LightningModule that optimizes itself."""
    return is_lightning(model) and not getattr(model, "automatic_optimization", True)


def device_of(model: nn.Module) -> torch.device:
    """Where its first parameter is; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def in_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a dtype of mixed precision; None for that of the model, and float32 to switch autocast off."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def loss_of(model: nn.Module, batch: Any, loss_fn: Any = None) -> Tensor:
    """The loss of a batch, attached to its graph.

    Args:
        model: The model.
        batch: A batch.
        loss_fn: With it and a pair ``(inputs, targets)``: ``loss_fn(model(inputs), targets)``; with any other batch:
            ``loss_fn(model, batch)``. Without it: ``training_step`` of a LightningModule, otherwise ``.loss`` of
            ``model(**batch)``.

    Returns:
        One element, shape ``()``.

    Raises:
        ValueError: If there is no loss that can be differentiated.
    """
    loss = _computed(model, batch, loss_fn)
    if isinstance(loss, Mapping):
        loss = loss.get("loss")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        came = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise refuse("loss_fn" if loss_fn else "model", "something whose loss is one element with a graph", came,
                     "give a `loss_fn` whose result can be differentiated")  # fmt: skip
    return loss.reshape(())


def _computed(model: nn.Module, batch: Any, loss_fn: Any) -> Any:
    if loss_fn is not None:
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        return loss_fn(model(batch[0]), batch[1]) if is_pair else loss_fn(model, batch)
    if is_lightning(model):
        return model.training_step(*arguments_of(model, batch))  # type: ignore[operator]
    if isinstance(batch, Mapping):
        return getattr(model(**batch), "loss", None)
    raise refuse("loss_fn", "given for a model without a `training_step`", loss_fn, "for example nn.CrossEntropyLoss()")


def arguments_of(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The batch, the index of the batch and that of the loader, as many as the training step takes."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.training_step).parameters.values()  # type: ignore[arg-type]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return batch, 0
    return (batch, 0, 0)[: max(1, sum(p.kind in kinds for p in parameters))]


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on_device(part, device) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(on_device(part, device) for part in batch)
    if isinstance(batch, dict):
        return {key: on_device(part, device) for key, part in batch.items()}
    if not hasattr(batch, "to"):
        return batch
    return (batch if isinstance(batch, Tensor) else copy(batch)).to(device)  # some move themselves
