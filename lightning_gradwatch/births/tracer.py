"""At an alert of NaN, the step is replayed on a copy: when, with which batch, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_gradwatch.births.records import Birth
from lightning_gradwatch.births.remedies import remedy_for
from lightning_gradwatch.core.alerts.nonfinite import IF_UNKNOWN
from lightning_gradwatch.core.batch import Inputs
from lightning_gradwatch.core.engines import is_piece
from lightning_gradwatch.core.records import Alert, to_try
from lightning_gradwatch.core.shards import is_spread
from lightning_gradwatch.host import Host
from lightning_gradwatch.trials.loss import device_of, is_lightning
from lightning_gradwatch.trials.state import RandomStates, random_states

MAX_BATCHES = 8
"""Batches of a step that are kept until its end, the first ones."""


class Tracer:
    """Finds out where NaN was born, once per alert, while the weights are still whole; on this rank alone.

    Args:
        host: The training loop.
        model: The model.
    """

    def __init__(self, host: Host, model: nn.Module) -> None:
        self._host, self._model = host, model
        self._batches: list[tuple[Any, RandomStates]] = []
        self._device = device_of(model)
        self._alert: Alert | None = None

    def begin_batch(self, batch: object, is_first: bool) -> None:
        """Keep a batch, and the random state before it, until its step has been taken.

        Args:
            batch: The batch.
            is_first: Whether a step begins with it; otherwise its gradients are added to those before.
        """
        if is_first:
            self._batches.clear()
        if len(self._batches) < MAX_BATCHES and not isinstance(batch, Inputs):
            self._batches.append((batch, random_states(self._device)))

    def note(self, opened: Iterable[Alert]) -> None:
        """Remember an alert that asks for it."""
        self._alert = next((alert for alert in opened if alert.kind == "nonfinite"), self._alert)

    def due(self) -> Alert | None:
        """The alert to trace now, once; None if there is none."""
        alert, self._alert = self._alert, None
        return alert

    def trace(self, alert: Alert) -> Alert | None:
        """Replay the batches of the step; the alert with the place, None if none was found.

        Raises:
            RuntimeError: If that cannot be done.
        """
        if any(is_spread(parameter) or is_piece(parameter) for parameter in self._model.parameters()):
            raise RuntimeError("this rank holds only a part of the model")
        from lightning_gradwatch.births.replay import MAX_SECONDS, find_birth
        from lightning_gradwatch.trials.prescriber import Alone

        host, scale = self._host, self._host.loss_scale()
        with Alone() if host.num_ranks() > 1 else nullcontext():  # type: ignore[no-untyped-call]
            for batch, state in self._batches:
                birth = find_birth(
                    self._model,
                    batch,
                    host.loss_fn(),
                    precision=host.mixed_precision(),
                    loss_scale=1.0 if scale is None else float(scale),
                    random_state=state,
                    max_seconds=MAX_SECONDS / len(self._batches),
                )
                if birth is not None:
                    return with_birth(alert, birth)
        return None


def tracer_for(host: Host, model: nn.Module, on_nonfinite: str) -> Tracer | None:
    """A tracer, where steps whose gradient is not finite leave the weights whole and the loss can be computed again."""
    can_compute = host.loss_fn() is not None or is_lightning(model)
    return Tracer(host, model) if on_nonfinite != "keep" and can_compute else None


def with_birth(alert: Alert, birth: Birth) -> Alert:
    """The alert with the place, which is a better reason than what was known without it."""
    said = str(birth)
    if not birth.operation and birth.stage not in ("input", "weights"):  # where it came in, and not from where
        said = f"{alert.evidence}; {said}"
    # who knows the operation needs neither a tool that names one nor a choice of several
    remedy = remedy_for(birth.as_dict())
    others = [one for one in alert.remedies if one not in IF_UNKNOWN]
    remedies = tuple(([remedy] if remedy else []) + others) or alert.remedies
    message = alert.message.removesuffix(to_try(alert.remedies))
    why, tells = _sentence(alert.evidence), _sentence(said)
    message = message.replace(why, tells, 1) if why in message else f"{message} {tells}."
    message += to_try(remedies) if remedies else ""
    return replace(alert, message=message, evidence=said, remedies=remedies, birth=birth.as_dict())


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
