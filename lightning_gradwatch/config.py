"""What the user asked for: the arguments of a watch, checked before anything has been spent on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import PurePath
from typing import Literal, TypeAlias, TypedDict

from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_gradwatch.actions import Action, OnAlert, require_actions
from lightning_gradwatch.core._check import refuse, require, require_fraction, require_globs
from lightning_gradwatch.core.alerts.own_rules import own_kinds
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.clip import ClipPolicy, make_policies
from lightning_gradwatch.core.clip.clippers import require_optimizer
from lightning_gradwatch.core.layers import check_selection
from lightning_gradwatch.core.quantities.own import declare
from lightning_gradwatch.core.quantities.quantity import LayerQuantity
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import OnNonfinite, OnSpike, Settings
from lightning_gradwatch.outputs.notify import Address, Addresses
from lightning_gradwatch.trials.prescriber import require_seconds

ClipName = Literal["band", "percentile", "zscore", "agc", "adagc", "norm", "value"]
AutoClip: TypeAlias = bool | float | ClipName | ClipPolicy | Sequence[float | ClipName | ClipPolicy] | None
SampleAt = Literal["step", "backward"]


@dataclass(frozen=True)
class Config:
    """The checked arguments of a watch; [`configure`][lightning_gradwatch.config.configure] makes it.

    Attributes:
        settings: What each optimizer's watcher looks at, how often, and what it clips by.
        sample_at: Whether the complete gradient of a step is observed, or that after every backward pass.
        log_every_n_steps: Steps between two publications to the loggers; None for the host's own.
        group_by: Number of leading path components by which layers share a row in the standard dashboards; None for
            one row per layer, or per module if there are many.
        layer_cards: How many of these rows have cards there; None for all.
        compose_clipping: Whether we may clip before the host clips once more.
        addresses: Where messages about alerts go; they hold secrets.
        tensorboard_url: Address of a TensorBoard that shows the run; None for no link in messages.
        on_alert: What to do when an alert of a kind opens.
        flight_steps: Steps that the flight record holds; 0 for none.
        progress_bar: Whether the progress bar shows the score of ``vanishing`` while it matters.
        max_overhead: What watching may cost, as a fraction of the time of the steps; None for no budget.
        prescribe_seconds: What trials of remedies may take, in seconds; 0 for no trials.
        record: Directory, or URL, of an event file of our own; None for one where no logger can hold what tab and
            report show; False for none, and for run-level numbers alone in the loggers.
    """

    settings: Settings
    sample_at: SampleAt
    log_every_n_steps: int | None
    group_by: int | None
    layer_cards: int | None
    compose_clipping: bool
    addresses: Addresses
    tensorboard_url: str | None
    on_alert: Mapping[str, Action]
    flight_steps: int
    progress_bar: bool
    max_overhead: float | None
    prescribe_seconds: float
    record: str | Literal[False] | None

    @property
    def intervenes(self) -> bool:
        """Whether gradients are clipped, or steps skipped or refused."""
        settings = self.settings
        return bool(settings.policies) or settings.on_nonfinite in ("skip", "raise") or settings.on_spike != "keep"

    @property
    def acts(self) -> bool:
        """Whether any alert is answered by more than a warning."""
        return any(action != "warn" for action in self.on_alert.values())

    def check_layers(self, model: nn.Module) -> None:
        """Refuse a selection of nothing.

        Raises:
            ValueError: If a glob of ``include`` matches no layer of the model, or no layer is left to watch or to clip.
        """
        selections = [(chosen.include, chosen.exclude) for chosen in self.settings.policies]
        for include, exclude in [(self.settings.include, self.settings.exclude), *selections]:
            if include or exclude:
                check_selection(model, tuple(include), tuple(exclude))

    def check_sampling(self, num_optimizers: int) -> None:
        """Refuse to observe after every backward pass where nobody knows for which optimizer it is.

        Raises:
            ValueError: If there are several optimizers and ``sample_at`` is ``"backward"``.
        """
        if self.sample_at == "backward" and num_optimizers > 1:
            came = f"backward with {num_optimizers} optimizers"
            raise refuse("sample_at", '"step" where there are several optimizers', came, "leave the argument out")

    def check_in_a_loop(self, loss_fn: object) -> None:
        """Refuse what cannot be served where the loop is the user's own.

        Args:
            loss_fn: How a copy of the model computes the loss of a batch; None if nobody has said.

        Raises:
            ValueError: If every backward pass is to be observed, or remedies are to be tried without a ``loss_fn``.
        """
        if self.sample_at != "step":
            raise refuse("sample_at", '"step" in a hand-written loop', self.sample_at, "leave it out")
        rule, cure = "a function that computes the loss of a batch", "for example loss_fn=nn.CrossEntropyLoss()"
        if loss_fn is not None and not callable(loss_fn):
            raise refuse("loss_fn", rule, loss_fn, cure)
        if self.prescribe_seconds and loss_fn is None:
            cure = f"{cure}, and call `before_forward(batch)` before each forward pass"
            raise refuse("loss_fn", f"{rule}, where remedies are to be tried in a loop", None, cure)

    def check_policies(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Refuse policies for optimizers that are not there, and optimizers that cannot be clipped or held back.

        Args:
            optimizers: All of them by name, a single one by ``""``.

        Raises:
            ValueError: If a policy names another optimizer; if one of these is LBFGS and steps are to be clipped, or
                left out as spikes.
        """
        names = [name or type(optimizer).__name__ for name, optimizer in optimizers.items()]
        for policy in self.settings.policies:
            require_optimizer(policy, names)
        if not any(isinstance(optimizer, LBFGS) for optimizer in optimizers.values()):
            return
        if self.settings.policies:
            cure = "leave auto_clip out; LBFGS finds the length of its steps by itself"
            raise refuse("auto_clip", "None with LBFGS, which needs true gradients", list(self.settings.policies), cure)
        if self.settings.on_spike != "keep":
            cure = "leave on_spike out; LBFGS finds the length of its steps by itself"
            raise refuse("on_spike", '"keep" with LBFGS, whose steps evaluate the loss several times', "skip", cure)


class Arguments(TypedDict, total=False):
    """Those of [`configure`][lightning_gradwatch.config.configure], for loops that take them by name."""

    sample_at: SampleAt
    dense_steps: int
    sample_every_n_steps: int
    log_every_n_steps: int | None
    histogram_every: int
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    group_by: int | None
    layer_cards: int | None
    auto_clip: AutoClip
    compose_clipping: bool
    on_nonfinite: OnNonfinite
    on_spike: OnSpike
    vanishing_threshold: float
    notify: Sequence[Address] | Address | None
    tensorboard_url: str | None
    on_alert: OnAlert
    flight_steps: int
    progress_bar: bool
    max_overhead: float | None
    prescribe: bool | float
    rules: Sequence[Rule]
    quantities: Sequence[LayerQuantity]
    record: str | PathLike[str] | bool | None


def configure(
    sample_at: SampleAt = "step",
    dense_steps: int = 20,
    sample_every_n_steps: int = 10,
    log_every_n_steps: int | None = None,
    histogram_every: int = 10,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    group_by: int | None = None,
    layer_cards: int | None = 8,
    auto_clip: AutoClip = None,
    compose_clipping: bool = False,
    on_nonfinite: OnNonfinite = "keep",
    on_spike: OnSpike = "keep",
    vanishing_threshold: float = 0.5,
    notify: Sequence[Address] | Address | None = None,
    tensorboard_url: str | None = None,
    on_alert: OnAlert = "warn",
    flight_steps: int = 200,
    progress_bar: bool = False,
    max_overhead: float | None = None,
    prescribe: bool | float = False,
    rules: Sequence[Rule] = (),
    quantities: Sequence[LayerQuantity] = (),
    record: str | PathLike[str] | bool | None = None,
) -> Config:
    """Check the arguments of a watch, which [`GradWatch`][lightning_gradwatch.GradWatch] explains.

    Raises:
        ValueError: If one of them is out of its range, or two of them exclude each other.
    """
    # when and where to look
    if sample_at not in ("step", "backward"):
        raise refuse("sample_at", '"step" or "backward"', sample_at, 'use "step" unless you want every micro-batch')
    if log_every_n_steps is not None:
        require("log_every_n_steps", log_every_n_steps, 1, "leave it out to follow the Trainer")
    if group_by is not None:
        require("group_by", group_by, 1, "leave it out for one row per layer or module")
    if layer_cards is not None:
        require("layer_cards", layer_cards, 0, "use 0 for no cards, and None for one for every row")
    require("histogram_every", histogram_every, 0, "use 0 for no histograms")
    require_fraction(
        "vanishing_threshold", vanishing_threshold, "0.5 is a loss of two orders of magnitude, 1.0 of four"
    )
    if max_overhead is not None:
        require_fraction("max_overhead", max_overhead, "0.01 is 1 % of the time of a step; None is no budget")
    # what to do with a step: it must be a whole one
    if on_nonfinite not in ("keep", "trace", "skip", "raise"):
        raise refuse(
            "on_nonfinite", '"keep", "trace", "skip" or "raise"', on_nonfinite, "leave it out to keep the step"
        )
    if on_spike not in ("keep", "skip"):
        raise refuse("on_spike", '"keep" or "skip"', on_spike, "leave it out to keep the step")
    if sample_at == "backward" and (auto_clip or on_nonfinite != "keep" or on_spike != "keep"):
        came = f'"backward" with auto_clip={auto_clip!r}, on_nonfinite={on_nonfinite!r} and on_spike={on_spike!r}'
        raise refuse("sample_at", '"step" to clip or skip whole steps', came, "leave sample_at out")
    # what the user has added
    declare("quantities", quantities)
    # what to write and whom to tell
    require("flight_steps", flight_steps, 0, "use 0 for no flight record")
    if tensorboard_url is not None and not str(tensorboard_url).startswith(("http://", "https://")):
        raise refuse("tensorboard_url", "an address", tensorboard_url, 'for example "http://localhost:6006"')
    return Config(
        addresses=Addresses("notify", notify),
        tensorboard_url=tensorboard_url,
        on_alert=require_actions(on_alert, own_kinds(rules)),
        prescribe_seconds=require_seconds(prescribe),
        record=_require_record(record),
        flight_steps=flight_steps,
        progress_bar=progress_bar,
        compose_clipping=compose_clipping,
        sample_at=sample_at,
        log_every_n_steps=log_every_n_steps,
        group_by=group_by,
        layer_cards=layer_cards,
        max_overhead=max_overhead,
        # what every watcher needs to know: further arguments about what is measured and judged belong here
        settings=Settings(
            are_complete=sample_at == "step",
            schedule=Schedule(dense_steps, sample_every_n_steps),
            histogram_every=histogram_every,
            include=require_globs("include", () if include is None else include),
            exclude=require_globs("exclude", () if exclude is None else exclude),
            vanishing_threshold=vanishing_threshold,
            policies=make_policies(auto_clip),
            on_nonfinite=on_nonfinite,
            on_spike=on_spike,
            rules=tuple(rules),
            quantities=tuple(quantities),
        ),
    )


def _require_record(record: object) -> str | Literal[False] | None:
    """Where the record lies.

    Raises:
        ValueError: If it is no directory.
    """
    if record is None or record is False:
        return record
    rule = "a directory, its URL, None or False"
    place = fspath(record) if isinstance(record, (str, PathLike)) else None
    if not isinstance(place, str) or not place:
        raise refuse("record", rule, record, "leave it out for a record wherever no logger holds one")
    if isinstance(record, PurePath) and re.match(r"[\w+.-]{2,}:/", place):
        raise refuse("record", rule, record, "give a URL as text: a path has lost one of its slashes")
    return place
