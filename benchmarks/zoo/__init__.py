"""A zoo of small training runs, sick and healthy, with honest labels."""

from __future__ import annotations

from . import broken, convolutional, generative, healthy_mlp, late, mlp, precision, recurrent, situations, transformer
from .case import Case, Task

__all__ = ["CASES", "NOT_JUDGED_BY_LOSS", "Case", "Task"]

NOT_JUDGED_BY_LOSS = frozenset({"gan"})  # an adversarial loss need not fall
FILES = (mlp, healthy_mlp, convolutional, recurrent, transformer, generative, precision, broken, late, situations)
CASES: dict[str, Case] = {case.name: case for file in FILES for case in file.CASES}
