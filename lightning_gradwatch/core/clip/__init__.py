"""Clipping: a policy turns the norms that were measured anyway into a threshold; the gradients are scaled in place."""

from lightning_gradwatch.core.clip.clipper import Clipper, Clipping
from lightning_gradwatch.core.clip.policies import (
    AGC,
    AdaGC,
    ClipPolicy,
    MaxNorm,
    MaxValue,
    Percentile,
    ZScore,
    make_policies,
    make_policy,
)

__all__ = [
    "AGC",
    "AdaGC",
    "ClipPolicy",
    "Clipper",
    "Clipping",
    "MaxNorm",
    "MaxValue",
    "Percentile",
    "ZScore",
    "make_policies",
    "make_policy",
]
