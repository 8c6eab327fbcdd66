"""lightning-gradwatch: the gradient watch for PyTorch Lightning.

The names below are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_gradwatch._lightning import GradWatchWarning
    from lightning_gradwatch.callback import GradWatch
    from lightning_gradwatch.core.records import Alert

__all__ = ["Alert", "GradWatch", "GradWatchWarning"]

_HOMES = {
    "Alert": "lightning_gradwatch.core.records",
    "GradWatch": "lightning_gradwatch.callback",
    "GradWatchWarning": "lightning_gradwatch._lightning",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
