"""What outlives one ``fit``, and stands in checkpoints: the alerts, and the state of each optimizer's watcher."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.outputs.memory import MemoryRecord
from lightning_gradwatch.reading.left_out import LeftOut

VERSION = 1
_MAX_NAMED = 5


class RunState:
    """The state of a run between two fits of it.

    Attributes:
        alert_log: The alerts of the run.
        watchers: States of watchers by the optimizer's name, until somebody takes them over.
        record: What the record of the run had not written yet when it was saved.
        memory: What tab and report show of it, as far as this process knows; no part of a checkpoint.
        left_out: What failed in the present fit, and is left out; no part of a checkpoint, as the next fit tries again.
        lost: Names of the parts of a checkpoint that could not be read, and of which nobody has been told yet.
    """

    def __init__(self) -> None:
        self.alert_log = AlertLog()
        self.watchers: dict[str, State] = {}
        self.record: State = {}
        self.memory = MemoryRecord()
        self.left_out: list[LeftOut] = []
        self.lost: list[str] = []

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back, but for the watchers."""
        return {"version": VERSION, **self.alert_log.state_dict(), "record": self.record}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Go on where the checkpoint was written; what it lacks, or cannot be read, starts afresh, part by part.

        Raises:
            ValueError: If it is of another version.
        """
        saved = Saved(state_dict)
        version = saved.take("version", int, VERSION)
        if version != VERSION:
            raise ValueError(f"version {version} instead of {VERSION}")
        self.alert_log.load_state_dict(saved)
        watchers = saved.part("watchers")
        self.watchers = {name: watchers.take(name, dict[str, object], {}) for name in watchers}
        self.record = saved.take("record", dict[str, object], {})
        self.lost = saved.lost

    def take(self, name: str) -> Saved | None:
        """The state of an optimizer's watcher, which is handed over; None if there is none."""
        if name not in self.watchers:
            return None
        return Saved(self.watchers.pop(name), self.lost, f"watchers.{name}" if name else "watcher")

    def complaint(self) -> str | None:
        """What is to be said, once, about parts that were lost."""
        if not self.lost:
            return None
        further = f" and {len(self.lost) - _MAX_NAMED} more" if len(self.lost) > _MAX_NAMED else ""
        named, self.lost = ", ".join(self.lost[:_MAX_NAMED]) + further, []
        return (
            f"GradWatch cannot read these parts of the checkpoint and starts them afresh: {named}. All the others go "
            "on, and so does training."
        )
