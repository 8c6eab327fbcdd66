"""Figures without which a watch is still a watch: one that fails is left out from then on, as one line says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
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


class OwnFigure(str):
    """A figure that only its user knows by name."""

    __slots__ = ()


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)


class OptionalFigures:
    """Measures what may fail without anything else failing.

    Args:
        tell: Takes the line that says what is left out, and why.

    Attributes:
        absent: The figures that have failed; besides those of the house, what a user has added, by name.
    """

    def __init__(self, tell: Callable[[str], None] = _warn) -> None:
        self._tell = tell
        self.absent: set[str] = set()

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
            why = f"{type(failure).__name__}: {failure}".splitlines()[0]
            self._tell(
                f"GradWatch leaves out {_WORDS.get(figure, figure)} from now on, and goes on with the rest ({why})."
            )
            return instead
