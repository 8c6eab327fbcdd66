"""Figures without which a watch is still a watch: one that fails is left out from then on, as one line says."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, TypeAlias, TypeVar, get_args

from lightning_gradwatch.core._guard import is_the_users

P = ParamSpec("P")
T = TypeVar("T")

Figure: TypeAlias = Literal[
    "batch",
    "architecture",
    "weights",
    "nonzeros",
    "outputs",
    "sequences",
    "updates",
    "moments",
    "output_nonzeros",
    "inputs",
    "attribution",
    "histogram",
    "clipped",
    "evidence",
    "causes",
    "remedies",
    "birth",
]
_WORDS: dict[str, str] = {
    "batch": "whether the batch is finite",
    "architecture": "what the network is made of",
    "weights": "the weight norms",
    "nonzeros": "the zero fractions",
    "outputs": "the gradients at the layers' outputs",
    "sequences": "the gradients along time steps",
    "updates": "the size of the updates",
    "moments": "Adam's moments",
    "output_nonzeros": "zeros in float16 gradients",
    "inputs": "the layers' inputs",
    "attribution": "what each operation does to the gradient",
    "histogram": "the histograms",
    "clipped": "which layers were clipped",
    "evidence": "what tells the causes of alerts",
    "causes": "the causes of alerts",
    "remedies": "trials of remedies",
    "birth": "where NaN is born",
}


_OURS = Path(__file__).parents[1]


@dataclass(frozen=True)
class OwnFigure:
    """A figure that only its user knows: a rule or a quantity, by its name."""

    kind: Literal["rule", "quantity"]
    name: str


@dataclass(frozen=True)
class Omission:
    """A figure that is left out from now on.

    Attributes:
        figure: Which one.
        why: What went wrong; where the user's own code did, the file and the line of it.
    """

    figure: Figure | OwnFigure
    why: str

    @property
    def what(self) -> str:
        """The figure in words."""
        own = self.figure
        return f"your {own.kind} `{own.name}`" if isinstance(own, OwnFigure) else _WORDS[own]

    def __str__(self) -> str:
        return f"GradWatch leaves out {self.what} from now on, and goes on with the rest ({self.why})."


def _warn(omission: Omission) -> None:
    warnings.warn(str(omission), stacklevel=2)


class OptionalFigures:
    """Measures what may fail without anything else failing.

    Args:
        tell: Takes what is left out, and why.

    Attributes:
        absent: The figures that have failed.
    """

    def __init__(self, tell: Callable[[Omission], None] = _warn) -> None:
        self._tell = tell
        self.absent: set[Figure | OwnFigure] = set()

    def leave_out_all(self) -> None:
        """Measure nothing any more, and do not say so."""
        self.absent.update(get_args(Figure))

    def take(
        self, figure: Figure | OwnFigure, instead: T, measure: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What ``measure`` returns for these arguments; ``instead`` if it fails, or has failed before."""
        if figure in self.absent:
            return instead
        try:
            return measure(*args, **kwargs)
        except Exception as failure:
            if is_the_users(failure):
                raise
            self.absent.add(figure)
            place = _place_of(failure) if isinstance(figure, OwnFigure) else ""
            self._tell(Omission(figure, f"{type(failure).__name__}: {failure}".splitlines()[0] + place))
            return instead


def _place_of(failure: Exception) -> str:
    """Where code that is not ours was called when it failed; ``""`` if it was not."""
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = next((frame for frame in frames if _OURS not in Path(frame.filename).parents), None)
    return "" if theirs is None else f"; {Path(theirs.filename).name}, line {theirs.lineno}"
