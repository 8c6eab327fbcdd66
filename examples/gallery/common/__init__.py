"""What the rows of the gallery share."""

from common.data import CHARACTERS, batches, digits, text
from common.learning import Learner, adam, per_token, sgd, warmed_up
from common.rows import Network, Outcome, Pair, Row, Task, objections
from common.showing import draw, show, tell
from common.training import load, train, train_by_name

__all__ = [
    "CHARACTERS",
    "Learner",
    "Network",
    "Outcome",
    "Pair",
    "Row",
    "Task",
    "adam",
    "batches",
    "digits",
    "draw",
    "load",
    "objections",
    "per_token",
    "sgd",
    "show",
    "tell",
    "text",
    "train",
    "train_by_name",
    "warmed_up",
]
