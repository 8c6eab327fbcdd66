"""Clipping: a policy turns the norms that were measured anyway into a threshold; the gradients are scaled in place.

A new policy is a file like ``band.py``, with all that it is made of, and its place in ``POLICIES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from lightning_gradwatch.core._check import is_list, refuse
from lightning_gradwatch.core.clip.adagc import AdaGC as AdaGC
from lightning_gradwatch.core.clip.agc import AGC as AGC
from lightning_gradwatch.core.clip.band import Band as Band
from lightning_gradwatch.core.clip.clipper import Clipper as Clipper
from lightning_gradwatch.core.clip.clipper import Clipping as Clipping
from lightning_gradwatch.core.clip.norm import MaxNorm as MaxNorm
from lightning_gradwatch.core.clip.percentile import Percentile as Percentile
from lightning_gradwatch.core.clip.policy import ClipPolicy as ClipPolicy
from lightning_gradwatch.core.clip.policy import SelectivePolicy
from lightning_gradwatch.core.clip.value import MaxValue as MaxValue
from lightning_gradwatch.core.clip.zscore import ZScore as ZScore

POLICIES: tuple[type[SelectivePolicy], ...] = (Band, Percentile, ZScore, AGC, AdaGC, MaxNorm, MaxValue)
"""Every policy, the default one first."""
NAMES = tuple(policy.name for policy in POLICIES)
"""What a user may write for each, in the same order."""


def make_policy(choice: bool | float | str | ClipPolicy) -> ClipPolicy:
    """The policy that a user means.

    Args:
        choice: True for the default; the name of a policy, such as ``"zscore"``, for that policy with its own defaults;
            a number for ``MaxNorm``; or a policy.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(choice, POLICIES):
        return choice
    if choice is True:
        return POLICIES[0]()
    if isinstance(choice, str) and choice in NAMES:
        return POLICIES[NAMES.index(choice)]()
    if isinstance(choice, (Real, float)) and choice is not False:
        return MaxNorm(float(choice))
    names = ", ".join(f'"{name}"' for name in NAMES)
    raise refuse(
        "auto_clip",
        f"True, {names}, a number or a policy",
        choice,
        "use True for the default, None for no clipping, a number for a fixed maximum of the total norm",
    )


def make_policies(
    choice: bool | float | str | ClipPolicy | Sequence[float | str | ClipPolicy] | None,
) -> tuple[ClipPolicy, ...]:
    """The policies that a user means; none for None, False and an empty list.

    Args:
        choice: As for ``make_policy``, or several policies.

    Raises:
        ValueError: If one of them is none.
    """
    if choice is None or choice is False:
        return ()
    return tuple(map(make_policy, choice)) if is_list(choice) else (make_policy(choice),)  # type: ignore[arg-type]
