"""Real trainings, shared with the tests of the tab."""

from tests.tensorboard.conftest import logs, stored

__all__ = ["logs", "stored"]
