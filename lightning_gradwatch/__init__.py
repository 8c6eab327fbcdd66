"""lightning-gradwatch: the gradient watch for PyTorch Lightning.

The names below are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `as` exports a name to type checkers
    from lightning_gradwatch.births.records import Birth as Birth
    from lightning_gradwatch.births.replay import find_birth as find_birth
    from lightning_gradwatch.callback import GradWatch as GradWatch
    from lightning_gradwatch.core.clip import AGC as AGC
    from lightning_gradwatch.core.clip import AdaGC as AdaGC
    from lightning_gradwatch.core.clip import Band as Band
    from lightning_gradwatch.core.clip import MaxNorm as MaxNorm
    from lightning_gradwatch.core.clip import MaxValue as MaxValue
    from lightning_gradwatch.core.clip import Percentile as Percentile
    from lightning_gradwatch.core.clip import ZScore as ZScore
    from lightning_gradwatch.core.records import Alert as Alert
    from lightning_gradwatch.errors import GradientAlertError as GradientAlertError
    from lightning_gradwatch.errors import GradWatchWarning as GradWatchWarning
    from lightning_gradwatch.loop import watch as watch
    from lightning_gradwatch.trials.headroom.measure import lr_headroom as lr_headroom
    from lightning_gradwatch.trials.headroom.records import Headroom as Headroom
    from lightning_gradwatch.trials.prescribe import prescribe as prescribe
    from lightning_gradwatch.trials.records import Prescription as Prescription

    __version__: str

_HOMES = {
    "Alert": "lightning_gradwatch.core.records",
    "Birth": "lightning_gradwatch.births.records",
    "GradWatch": "lightning_gradwatch.callback",
    "GradWatchWarning": "lightning_gradwatch.errors",
    "GradientAlertError": "lightning_gradwatch.errors",
    "Headroom": "lightning_gradwatch.trials.headroom.records",
    "Prescription": "lightning_gradwatch.trials.records",
    "find_birth": "lightning_gradwatch.births.replay",
    "lr_headroom": "lightning_gradwatch.trials.headroom.measure",
    "prescribe": "lightning_gradwatch.trials.prescribe",
    "watch": "lightning_gradwatch.loop",
    **dict.fromkeys(
        ("AGC", "AdaGC", "Band", "MaxNorm", "MaxValue", "Percentile", "ZScore"), "lightning_gradwatch.core.clip"
    ),
}

if not TYPE_CHECKING:  # type checkers understand a written list only, and have the imports above
    __all__ = sorted(_HOMES)


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
    return sorted({*globals(), *_HOMES, "__version__"})
