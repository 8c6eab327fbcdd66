"""Norms, learning rates and what was not finite, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from itertools import pairwise

from lightning_gradwatch.core.records import Observation
from lightning_gradwatch.core.saved import Saved, State

_KEPT: dict[str, type[object]] = {
    **dict.fromkeys(("rates", "early_norms", "norms"), list[float]),
    **dict.fromkeys(("bad_inputs", "sound_inputs", "bad_losses", "sound_losses"), list[int]),
    "takes_bad_inputs": bool,
}
EARLY_STEPS = 20
RECENT_STEPS = 20
RECENT_RATES = 10


class StepFacts:
    """What is known of single steps: all that are not finite of late, and the sizes of the others.

    Attributes:
        lr: The learning rate, None if it is not known.
        rates: Those of the last 10 observations, where they are known.
        norms: Total norms of the last 20 steps; those of the first 20 in ``early_norms``.
        bad_inputs: Of the steps whose loss or gradient was NaN or inf those whose batch held NaN or inf, too, the last
            20 of them.
        sound_inputs: Likewise those whose batch was wholly looked at and held none.
        bad_losses: Likewise those whose loss was NaN or inf.
        sound_losses: Likewise those whose loss was not.
        takes_bad_inputs: Whether a batch with NaN or inf has done no harm: then they may be there on purpose.
        num_ranks: Processes that share the gradients; losses and batches are those of this one alone.
    """

    def __init__(self) -> None:
        from torch import distributed  # the words of alerts are read without torch

        self.lr: float | None = None
        self.rates: list[float] = []
        self.early_norms: list[float] = []
        self.norms: list[float] = []
        self.bad_inputs: list[int] = []
        self.sound_inputs: list[int] = []
        self.bad_losses: list[int] = []
        self.sound_losses: list[int] = []
        self.takes_bad_inputs = False
        has_ranks = distributed.is_available() and distributed.is_initialized()
        self.num_ranks = distributed.get_world_size() if has_ranks else 1

    @property
    def is_warming_up(self) -> bool:
        """Whether the learning rate has risen at each of the last observations."""
        return len(self.rates) > 1 and all(a < b for a, b in pairwise(self.rates))

    def add(self, observation: Observation) -> None:
        """Take in an observation."""
        self.lr = observation.lr
        self.rates = [*self.rates, *([] if self.lr is None else [self.lr])][-RECENT_RATES:]
        finite = [n for n in observation.total_norms if math.isfinite(n)]
        self.early_norms += finite[: EARLY_STEPS - len(self.early_norms)]
        self.norms = [*self.norms, *finite][-RECENT_STEPS:]
        rows = zip(observation.steps, observation.losses, observation.bad_inputs, observation.total_norms, strict=True)
        for step, loss, is_batch_bad, norm in rows:
            is_loss_bad = None if loss is None else not math.isfinite(loss)
            if not is_loss_bad and math.isfinite(norm):
                self.takes_bad_inputs |= bool(is_batch_bad)
                continue
            if is_batch_bad is not None:
                (self.bad_inputs if is_batch_bad else self.sound_inputs).append(step)
            if is_loss_bad is not None:
                (self.bad_losses if is_loss_bad else self.sound_losses).append(step)
        for steps in (self.bad_inputs, self.sound_inputs, self.bad_losses, self.sound_losses):
            del steps[:-RECENT_STEPS]

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back; what comes with every observation is left out."""
        return {name: copy(getattr(self, name)) for name in _KEPT}

    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken."""
        saved = Saved.of(state)
        for name, kind in _KEPT.items():
            setattr(self, name, saved.take(name, kind, getattr(self, name)))
