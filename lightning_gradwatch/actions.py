"""What is done about an alert: nothing more, a checkpoint, the end of training, an error, or what the user wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert, AlertKind
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.errors import GradientAlertError
from lightning_gradwatch.host import Host
from lightning_gradwatch.paths import at

ActionName = Literal["warn", "checkpoint", "stop", "raise"]
Action: TypeAlias = ActionName | Callable[[Alert], None]
OnAlert: TypeAlias = ActionName | dict[str, Action] | Callable[[Alert], None]  # jsonargparse prints by the first

MAX_CHECKPOINTS = 5
"""Checkpoints that alerts may leave in a directory: the first ones, which are nearest to the beginning of trouble."""


def require_actions(on_alert: object, own_kinds: Sequence[str] = ()) -> dict[str, Action]:
    """The action for every kind of alert.

    Args:
        on_alert: The action, or a dict of actions by kind.
        own_kinds: Kinds of the user's own rules.

    Raises:
        ValueError: If an action or a kind is not known.
    """
    kinds: tuple[str, ...] = (*get_args(AlertKind), *own_kinds)
    chosen: Mapping[str, Any] = on_alert if isinstance(on_alert, Mapping) else dict.fromkeys(kinds, on_alert)
    if unknown := [kind for kind in chosen if kind not in kinds]:
        raise refuse("on_alert", "a dict by kinds of alerts", unknown[0], f"the kinds are {', '.join(kinds)}")
    for action in chosen.values():
        if not (isinstance(action, str) and action in get_args(ActionName)) and not callable(action):
            rule = '"warn", "checkpoint", "stop", "raise", a function of an Alert, or a dict of these by kind'
            raise refuse("on_alert", rule, action, 'leave it out to be warned, or choose for example "stop"')
    return {kind: chosen.get(kind, "warn") for kind in kinds}


@dataclass(frozen=True)
class _Decision:
    """What rank zero has decided for all ranks."""

    alerts: tuple[Alert, ...]
    directory: str
    num_checkpoints: int


class Actions:
    """Acts on the alerts of one ``fit``, alike on all ranks.

    Ranks may see different losses, and so different alerts. What rank zero saw decides: it tells the others, in one
    broadcast at the steps at which samples are scheduled, which every rank knows by itself, whatever it has seen. So no
    rank waits for one that does not come.

    Args:
        choices: The action for each kind, from ``require_actions``.
        schedule: When samples are taken.
        host: The training loop.
    """

    def __init__(self, choices: Mapping[str, Action], schedule: Schedule, host: Host) -> None:
        self._host = host
        self._choices = choices
        self._schedule = schedule
        self._alerts: list[Alert] = []
        self._unsaved: list[str] = []
        self._num_saved = 0
        self._failed: set[str] = set()

    def note(self, alerts: Iterable[Alert]) -> None:
        """Remember alerts that have opened, or risen from a notice, until ``decide``."""
        self._alerts += [alert for alert in alerts if self._choices.get(alert.kind, "warn") != "warn"]

    def decide(self, is_last: bool = False) -> None:
        """Act on what rank zero has noted. All ranks must call this at the same steps.

        Args:
            is_last: Whether there will be no further step.

        Raises:
            GradientAlertError: If the action is ``"raise"``.
        """
        together = self._host.num_ranks() > 1
        is_due = is_last or self._schedule.is_due(self._host.step()) if together else bool(self._alerts)
        if not is_due:
            return
        alerts, self._alerts = tuple(self._alerts), []
        directory = self._host.checkpoint_dir() if alerts else ""
        num_checkpoints = max(_num_checkpoints(directory), self._num_saved) if alerts else 0
        decision = _Decision(alerts, directory, num_checkpoints)
        self._act(self._host.broadcast(decision) if together else decision)

    def save(self) -> None:
        """Save the checkpoints that were decided upon: call where a resume begins at a whole step."""
        while self._unsaved:
            path = self._unsaved.pop(0)
            try:
                self._host.save_checkpoint(path)
                self._num_saved += 1
                self._host.inform(f"GradWatch saved {path}.")
            except Exception as failure:
                if is_the_users(failure):
                    raise
                self._report("checkpoint", f"GradWatch cannot save {path} ({failure!r})")

    def _act(self, decision: _Decision) -> None:
        fatal = []
        for alert in decision.alerts:
            action = self._choices[alert.kind]
            if callable(action):
                self._call(action, alert)
            elif action == "checkpoint":
                self._plan_checkpoint(alert, decision)
            elif action == "stop":
                self._host.stop()
                self._host.inform(f"GradWatch stops the training because of {alert.kind} (step {alert.step}).")
            elif action == "raise":
                fatal.append(alert)
        if fatal:
            raise GradientAlertError(fatal)

    def _plan_checkpoint(self, alert: Alert, decision: _Decision) -> None:
        if decision.num_checkpoints + len(self._unsaved) < MAX_CHECKPOINTS:
            self._unsaved.append(str(at(decision.directory) / f"gradwatch-{alert.kind}-step={alert.step}.ckpt"))

    def _call(self, action: Callable[[Alert], None], alert: Alert) -> None:
        try:
            action(alert)
        except GradientAlertError:
            raise
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._report("function", f"GradWatch: the function for {alert.kind} in `on_alert` failed ({failure!r})")

    def _report(self, what: str, failure: str) -> None:
        if what not in self._failed:
            self._failed.add(what)
            self._host.warn(f"{failure}; the training itself is not affected. Nothing is said if it happens again.")


def _num_checkpoints(directory: str) -> int:
    """Those that are there already, of this run or of those before."""
    try:
        return len(list(at(directory).glob("gradwatch-*.ckpt")))
    except (OSError, ValueError) as failure:  # there can be no such directory, or it is out of reach
        if is_the_users(failure):
            raise
        return 0
