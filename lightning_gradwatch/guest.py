"""The GradWatch that ``GRADWATCH=1`` adds to every Trainer: harmless in any number and any order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from lightning_gradwatch import _lightning
from lightning_gradwatch._lightning import LightningModule, Trainer
from lightning_gradwatch.callback import GUEST_KEY, GradWatch
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.guarding import Health

P = ParamSpec("P")


def _harmless(
    hook: Callable[Concatenate[GradWatchGuest, Trainer, P], None],
) -> Callable[Concatenate[GradWatchGuest, Trainer, P], None]:
    """Where the hook of an explicit GradWatch would refuse the Trainer, a guest says so and leaves it."""

    @functools.wraps(hook)
    def guarded(self: GradWatchGuest, trainer: Trainer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(self, trainer, *args, **kwargs)
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._leave(trainer, failure)

    return guarded


class GradWatchGuest(GradWatch):
    """A GradWatch with the defaults that joins Trainers unasked, and makes none of them fail.

    Lightning appends a guest to the very list of callbacks that the caller gave to the Trainer. Whoever gives that list
    to another Trainer gives it guests as well. So who watches is settled when a ``fit`` begins: an explicit GradWatch,
    otherwise the first guest that is not watching another Trainer. All other guests leave the Trainer, whose list is
    one of its own.
    """

    state_key = GUEST_KEY
    """Key of the state in a checkpoint, the same for all guests."""

    @property
    def state_dict(self) -> Any:
        """Lightning's own, which is empty: a Trainer takes callbacks of one key only if they have no other."""
        return super(GradWatch, self).state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state beside that of the callbacks, so that nobody is missed where no guest comes again."""
        session = self._session_of(trainer)
        if session is not None and not session.is_off:
            checkpoint[GUEST_KEY] = GradWatch.state_dict(self)

    @_harmless
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle who watches, and begin if it is this one."""
        if stage == "fit" and self._is_chosen(trainer):
            super().setup(trainer, pl_module, stage)

    @_harmless
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the model."""
        super().on_fit_start(trainer, pl_module)

    @_harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a watch for every optimizer."""
        super().on_train_start(trainer, pl_module)

    def _is_chosen(self, trainer: Trainer) -> bool:
        """Whether this guest is to watch; all others are sent away, and so is a second entry of the same one."""
        present = _lightning.callbacks(trainer)
        guests = [place for place, callback in enumerate(present) if isinstance(callback, GradWatchGuest)]
        is_watched = sum(isinstance(callback, GradWatch) for callback in present) > len(guests)
        free = [] if is_watched else [place for place in guests if not present[place].is_busy(trainer)]
        sent_away = set(guests) - set(free[:1])
        if sent_away:
            _lightning.set_callbacks(trainer, [c for place, c in enumerate(present) if place not in sent_away])
        return bool(free) and present[free[0]] is self

    def _leave(self, trainer: Trainer, failure: Exception) -> None:
        if self._session is not None:
            self._session.guard.health = Health.SILENT
            self._session.close()
        _lightning.set_callbacks(trainer, [c for c in _lightning.callbacks(trainer) if c is not self])
        _lightning.warn(
            str(failure) if isinstance(failure, ValueError) else f"GradWatch leaves this Trainer: {failure!r}."
        )
