"""What loggers can show besides numbers: one file for each family of them.

A further family is one more file with a class that does what ``Family`` says, and a line here.
"""

from __future__ import annotations

from lightning_gradwatch.outputs.loggers.comet import Comet
from lightning_gradwatch.outputs.loggers.family import Family
from lightning_gradwatch.outputs.loggers.mlflow import MLflow
from lightning_gradwatch.outputs.loggers.trackio import Trackio
from lightning_gradwatch.outputs.loggers.wandb import WandB

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: tuple[type[Family], ...] = (WandB, MLflow, Comet, Trackio)


def family_of(logger: object) -> Family | None:
    """How to speak to a logger, which is known by the names of its classes; None for one that takes numbers only."""
    names = {kind.__name__ for kind in type(logger).__mro__}
    return next((family(logger) for family in FAMILIES if family.logger in names), None)
