"""lightning-gradwatch: the gradient watch for PyTorch Lightning.

The names below are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gradwatch._lightning import GradWatchWarning
    from lightning_gradwatch.callback import GradWatch
    from lightning_gradwatch.core.clip.policies import AGC, AdaGC, MaxNorm, MaxValue, Percentile, ZScore
    from lightning_gradwatch.core.records import Alert
    from lightning_gradwatch.errors import GradientAlertError
    from lightning_gradwatch.prescription.prescribe import prescribe
    from lightning_gradwatch.prescription.records import Prescription

    __version__: str

__all__ = [
    "AGC",
    "AdaGC",
    "Alert",
    "GradWatch",
    "GradWatchWarning",
    "GradientAlertError",
    "MaxNorm",
    "MaxValue",
    "Percentile",
    "Prescription",
    "ZScore",
    "prescribe",
]

_HOMES = {
    "Alert": "lightning_gradwatch.core.records",
    "GradWatch": "lightning_gradwatch.callback",
    "GradWatchWarning": "lightning_gradwatch._lightning",
    "GradientAlertError": "lightning_gradwatch.errors",
    "Prescription": "lightning_gradwatch.prescription.records",
    "prescribe": "lightning_gradwatch.prescription.prescribe",
    **dict.fromkeys(
        ("AGC", "AdaGC", "MaxNorm", "MaxValue", "Percentile", "ZScore"), "lightning_gradwatch.core.clip.policies"
    ),
}


def _version() -> str:
    """The version that is installed; ``0+unknown`` for sources that are not."""
    from importlib import metadata  # takes longer to import than this package

    try:
        return metadata.version("lightning-gradwatch")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
