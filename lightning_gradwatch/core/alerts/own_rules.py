"""The rules of a user: checked, asked, saved, and left out when they fail."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from lightning_gradwatch.core._check import is_list, refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.alerts.hysteresis import finding_state, take_finding
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.optional import OptionalFigures, OwnFigure
from lightning_gradwatch.core.records import AlertKind, AlertLevel, Finding, Observation
from lightning_gradwatch.core.saved import Saved, State, plain


@dataclass(frozen=True)
class OwnKind:
    """The words of a user's rule.

    Attributes:
        name: Name of its kind.
        title: What is wrong, as a headline.
        unit: What its value counts; ``""`` for nothing in particular.
        cause: Why it usually happens; ``""`` if that is not said.
        remedies: What to try; empty if that is not said.
    """

    name: str
    title: str
    unit: str
    cause: str
    remedies: tuple[str, ...]


class OwnRules:
    """The rules of a user, for one optimizer.

    Args:
        rules: As they were given; each is copied.
        taken: Kinds that no rule may have.
        optional: What leaves out a rule that fails.

    Attributes:
        kinds: Their words by kind.

    Raises:
        ValueError: If one of them is no rule, cannot be copied, or has a name or words that will not do.
    """

    def __init__(self, rules: Sequence[Rule], taken: Collection[str], optional: OptionalFigures) -> None:
        if not is_list(rules):
            raise refuse("rules", "a list of rules", rules, "put the rule into a list")
        self.kinds: dict[str, OwnKind] = {}
        self._rules: dict[str, Rule] = {}
        self._optional = optional
        for place, rule in enumerate(rules):
            kind = _kind_of(f"rules[{place}]", rule, {*taken, *self.kinds})
            self.kinds[kind.name], self._rules[kind.name] = kind, _copied(f"rules[{place}]", rule)

    def update(self, observation: Observation, history: History) -> Iterator[Sequence[Finding]]:
        """Ask one after the other; what opened, rose to an alert, or ended just now, rule by rule."""
        for kind, rule in self._rules.items():
            # whatever a rule does to the norms, nobody else sees it
            given = replace(observation, norms=observation.norms.clone())
            yield self._optional.take(_figure(kind), (), _ask, kind, rule, given, history)

    def state_dict(self, history: History) -> State:
        """Primitives and tensors that ``load_state_dict`` takes back, by kind."""
        states: State = {}
        for kind, rule in self._rules.items():
            state = self._optional.take(_figure(kind), None, _state_of, rule)
            states[kind] = {"finding": finding_state(history.open.get(kind)), "state": state}
        return states

    def load_state_dict(self, saved: Saved, history: History) -> None:
        """Go on where ``state_dict`` was taken; a state that a rule refuses is dropped, with what was open."""
        for kind, rule in self._rules.items():
            part = saved.part(kind)
            state = part.find("state", dict[str, object])
            if state is not None:
                try:
                    loaded = copy.deepcopy(rule)
                    loaded.load_state_dict(state)  # type: ignore[attr-defined]
                except Exception as failure:
                    if is_the_users(failure):
                        raise
                    part.lose("state", None)
                    continue
                self._rules[kind] = loaded
            finding = take_finding(part, kind)
            if finding is not None:
                history.open[kind] = finding


def _figure(kind: str) -> OwnFigure:
    """A rule as a figure that may be left out."""
    return OwnFigure("rule", kind)


def own_kinds(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The kinds of a user's rules, checked.

    Raises:
        ValueError: If one of them will not do.
    """
    return tuple(OwnRules(rules, get_args(AlertKind), OptionalFigures()).kinds)


def _kind_of(argument: str, rule: object, taken: Collection[str]) -> OwnKind:
    """The words of a rule.

    Raises:
        ValueError: If it is none, or they will not do.
    """
    if isinstance(rule, type) or not isinstance(rule, Rule):
        cure = "pass an instance with `kind`, `title` and `update(observation, history)`"
        raise refuse(argument, "a rule", rule, cure)
    if not isinstance(rule.kind, str) or not rule.kind.isidentifier():
        raise refuse(f"{argument}.kind", "a Python identifier", rule.kind, 'for example "overheated"')
    if rule.kind in taken:
        cure = f"choose another one; these are taken: {', '.join(sorted(taken))}"
        raise refuse(f"{argument}.kind", "neither that of a built-in rule nor that of another one", rule.kind, cure)
    if not isinstance(rule.title, str) or not rule.title:
        raise refuse(f"{argument}.title", "a text", rule.title, "say what is wrong, as a headline")
    unit, cause, remedies = (getattr(rule, name, "") for name in ("unit", "cause", "remedies"))
    for name, word in (("unit", unit), ("cause", cause)):
        if not isinstance(word, str):
            raise refuse(f"{argument}.{name}", "a text", word, "leave it out if it is not known")
    remedies = remedies or ()
    if not is_list(remedies) or not all(isinstance(remedy, str) and remedy for remedy in remedies):
        raise refuse(f"{argument}.remedies", "a list of texts", remedies, "leave it out if there are none")
    return OwnKind(rule.kind, rule.title, unit, cause, tuple(remedies))


def _copied(argument: str, rule: Rule) -> Rule:
    """A copy of a rule.

    Raises:
        ValueError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(rule)
    except Exception as failure:
        if is_the_users(failure):
            raise
        cure = "keep files, locks and the like out of it, or give it a `__deepcopy__`"
        raise refuse(argument, "a rule that can be copied, for each optimizer has its own", rule, cure) from failure


def _ask(kind: str, rule: Rule, observation: Observation, history: History) -> list[Finding]:
    """What a rule has found, without what is known already.

    Raises:
        TypeError: If it has returned anything but findings of its kind.
    """
    found = rule.update(observation, history)
    changes: list[Finding] = []
    known = history.open.get(kind)
    for finding in _findings(kind, found):
        if finding.until_step is None:
            is_news = known is None or (known.level, finding.level) == ("notice", "alert")
        else:
            is_news = known is not None
        if is_news:  # an alert is known again by its step
            changes.append(finding if known is None else replace(finding, step=known.step))
            known = changes[-1] if finding.until_step is None else None
    return changes


def _findings(kind: str, found: object) -> list[Finding]:
    """What a rule has returned, with numbers and names that go into files and checkpoints as they are.

    Raises:
        TypeError: If it is anything but findings of its kind, or one of them holds what it should not.
    """
    findings = [found] if isinstance(found, Finding) else [] if found is None else found
    if not isinstance(findings, (list, tuple)) or not all(isinstance(each, Finding) for each in findings):
        raise TypeError(f"`update` must return findings of the kind {kind!r} or None, but returned {found!r}")
    return [_plain(kind, finding) for finding in findings]


def _plain(kind: str, finding: Finding) -> Finding:
    if finding.kind != kind:
        raise TypeError(f"`update` must return findings of the kind {kind!r}, but returned one of {finding.kind!r}")
    if finding.level not in get_args(AlertLevel):
        raise TypeError(f"the level of a finding must be one of {get_args(AlertLevel)}, but {finding.level!r} came")
    if not isinstance(finding.layers, (list, tuple)) or not all(isinstance(name, str) for name in finding.layers):
        raise TypeError(f"the layers of a finding must be a tuple of names, but {finding.layers!r} came")
    return replace(
        finding,
        step=_integer(finding.step),
        until_step=None if finding.until_step is None else _integer(finding.until_step),
        layers=tuple(map(str, finding.layers)),
        value=_number(finding.value),
        threshold=_number(finding.threshold),
    )


def _integer(number: object) -> int:
    """A step as Python's own number, whatever kind it came as."""
    try:
        return operator.index(number)  # type: ignore[arg-type]  # which refuses what is none
    except TypeError:
        raise TypeError(f"the step of a finding must be an integer, but {number!r} came") from None


def _number(number: object) -> float:
    """A value as Python's own number, whatever kind it came as: of numpy, or a tensor of one element."""
    if isinstance(number, str):
        raise TypeError(f"the value of a finding must be a number, but {number!r} came")
    try:
        return float(number)  # type: ignore[arg-type]  # which refuses what is none
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"the value of a finding must be a number, but {number!r} came") from None


def _state_of(rule: Rule) -> State | None:
    """What a rule wants to have saved, as a copy; None for nothing.

    Raises:
        TypeError: If it is anything but a dict of primitives and tensors.
    """
    if not hasattr(rule, "state_dict"):
        return None
    state = plain(rule.state_dict())
    if not isinstance(state, dict):
        raise TypeError(f"`state_dict` must return a dict, but returned {state!r}")
    return state
