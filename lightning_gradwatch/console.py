"""How a warning of ours looks on the console: in lines of its own, neither behind a file name nor behind a bar."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from lightning_gradwatch.core import telling
from lightning_gradwatch.errors import GradWatchWarning

_LOCK = threading.RLock()


@contextmanager
def shown_in_lines() -> Iterator[None]:
    """Show what is warned of meanwhile, if it is of ours, in lines as wide as the window, and above progress bars.

    Python would put our file before it, which helps nobody, and the name of the category. Whatever else decides about a
    warning (filters, ``logging.captureWarnings``) decides as ever.
    """
    with _LOCK, _above_bars():
        before = warnings.formatwarning

        def formatted(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
        ) -> str:
            if issubclass(category, GradWatchWarning):
                return f"{telling.fitted(str(message), telling.columns())}\n"
            return before(message, category, filename, lineno, line)

        warnings.formatwarning = formatted
        try:
            yield
        finally:
            if warnings.formatwarning is formatted:
                warnings.formatwarning = before


def _above_bars() -> AbstractContextManager[None]:
    """Take tqdm's bars off their lines until then; rich writes above its own by itself."""
    bar = getattr(sys.modules.get("tqdm"), "tqdm", None)
    above = getattr(bar, "external_write_mode", None)
    found: AbstractContextManager[None] = nullcontext() if above is None else above(file=sys.stderr)
    return found
