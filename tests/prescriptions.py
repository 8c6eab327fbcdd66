"""A prescription whose every figure is known, for the tests of what shows it."""

from __future__ import annotations

import math
from typing import Any

from lightning_gradwatch.trials.records import NotTried, Prescription, Trial


def prescription(remedy: str = "ReLU", why: str = "no two layers of the same shape", code: str = "a = 1\nb = 2") -> Any:
    """One remedy that helps, one that diverges, and one that could not be tried; as an alert holds it."""
    untreated = Trial("", "untreated", "no change", 11.1, 2.3, 2.3)
    helps = Trial("activation.relu", remedy, "helps", 0.4, 2.4, 0.41, code=code)
    worse = Trial("activation.silu", "SiLU", "worse", math.nan, 2.4, math.inf, parameters_percent=3.2)
    missing = NotTried("residual.layers", "skips", why)
    return Prescription("It is sick.", untreated, (helps, worse), (missing,), 20, 1.5).as_dict()
