"""Trainings that these tests share with those of the tab."""

from tests.tensorboard.conftest import logs, stored

__all__ = ["logs", "stored"]
