"""Real trainings, shared with the tests of the tab."""

from tests.tensorboard.conftest import logs

__all__ = ["logs"]
