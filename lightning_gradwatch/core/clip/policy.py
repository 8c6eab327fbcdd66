"""What every policy has: the gradients that it is for, checks of its arguments, and a transform that does the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from torch import Tensor

from lightning_gradwatch.core._check import refuse, require_globs
from lightning_gradwatch.core.clip.transform import Transform
from lightning_gradwatch.core.shards import Shards


def require_number(
    argument: str,
    value: object,
    rule: str,
    cure: str,
    most: float = math.inf,
    below: float = math.inf,
    above: float = 0.0,
) -> None:
    """Refuse ``value`` unless it is a finite number above ``above``, of at most ``most`` and less than ``below``.

    Raises:
        ValueError: If it is not; booleans are not numbers here.
    """
    number = float(value) if isinstance(value, (Real, float)) and not isinstance(value, bool) else math.nan
    if not (above < number <= most and number < below):
        raise refuse(argument, f"a number, {rule}", value, cure)


class ClipPolicy:
    """A way to clip gradients; every one has ``include``, ``exclude`` and ``optimizer``, see ``Percentile``.

    Not a dataclass itself: jsonargparse takes ``class_path`` for subclasses of an ordinary class only.

    Attributes:
        name: What a user may write instead of the policy with its defaults.
    """

    name: ClassVar[str]
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    optimizer: str | None

    def _transform(self, parameters: Sequence[Tensor], shards: Shards) -> Transform:
        """This policy at work; see ``Clipper``, which asks for it, for the arguments and errors."""
        raise refuse("auto_clip", "one of GradWatch's policies", self, "use True for the default")


@dataclass(frozen=True, kw_only=True)
class SelectivePolicy(ClipPolicy):
    """Which gradients a policy is for; carried here, evaluated by who builds the ``Clipper``."""

    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for argument in ("include", "exclude"):
            object.__setattr__(self, argument, require_globs(argument, getattr(self, argument)))
        if self.optimizer is not None and not (isinstance(self.optimizer, str) and self.optimizer):
            raise refuse("optimizer", "the name of an optimizer", self.optimizer, "use None for all optimizers")
