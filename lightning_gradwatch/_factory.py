"""GradWatch without a change of code: the entry points that add it to every Trainer where ``GRADWATCH=1`` is set."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradwatch.guest import GradWatchGuest

VARIABLE = "GRADWATCH"
_ON, _OFF = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


def callbacks() -> list[GradWatchGuest]:
    """What Lightning calls whenever a Trainer is made: a GradWatch if the environment asks for one.

    A Trainer never fails because of it: trouble becomes one warning, and the list stays empty.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in _OFF:
        return []
    try:
        from lightning_gradwatch import _lightning
        from lightning_gradwatch.guest import GradWatchGuest

        if value not in _ON:
            _lightning.warn(
                f"GradWatch: the environment variable {VARIABLE} must be 1 or 0, but {value!r} came, and GradWatch "
                f"stays out. To cure it: {VARIABLE}=1."
            )
            return []
        return [GradWatchGuest()]
    except Exception as failure:
        import logging

        from lightning_gradwatch.core._guard import is_the_users

        if is_the_users(failure):
            raise

        logging.getLogger("lightning_gradwatch").warning("GradWatch cannot join this Trainer: %r", failure)
        return []
