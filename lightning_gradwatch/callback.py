"""GradWatch: the order of the rooms, step by step of a Trainer. No arithmetic here."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Literal, ParamSpec

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

import lightning_gradwatch
from lightning_gradwatch import _lightning
from lightning_gradwatch._lightning import Callback, LightningModule, Trainer
from lightning_gradwatch.actions import Actions, OnAlert, require_actions
from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.alerts_file import Event
from lightning_gradwatch.core import metrics
from lightning_gradwatch.core._check import refuse, require, require_fraction, require_globs
from lightning_gradwatch.core._guard import attempt, is_the_users
from lightning_gradwatch.core.batch import check_batch, join
from lightning_gradwatch.core.clip import ClipPolicy, make_policies
from lightning_gradwatch.core.clip.clippers import require_optimizer
from lightning_gradwatch.core.cost import Cost
from lightning_gradwatch.core.layers import check_selection, is_measurable
from lightning_gradwatch.core.measure import norms
from lightning_gradwatch.core.modules import parameters
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.records import Alert, BatchCheck, Coverage
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.shards import local
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.errors import GradientAlertError
from lightning_gradwatch.flight import FlightRecorder
from lightning_gradwatch.notify import Address, Addresses, Notifier
from lightning_gradwatch.prescribing import Prescriber, require_seconds
from lightning_gradwatch.signals import SignalWatch
from lightning_gradwatch.sinks import Sinks
from lightning_gradwatch.summary import RunSummary, summarise

_STATE_VERSION = 1
_KEY, GUEST_KEY = "GradWatch", "GradWatch from the environment"
_COMPILED = (
    "GradWatch judges the gradients of the weights in this model: the layers' outputs cannot be observed inside "
    "torch.compile or TorchScript."
)
_BUSY = (
    "GradWatch stays out of this Trainer: the same object is watching another one, whose `fit` is still under way. To "
    "cure it: give each Trainer its own, GradWatch()."
)
_BLIND = (
    "GradWatch cannot look at the layers' outputs in this model and goes on with the gradients of the weights alone. "
    "What went wrong:\n"
)
_PARTLY_BLIND = "GradWatch leaves out the outputs of layer {} from now on, and goes on with the rest ({})."
_LOST_ADDRESSES = (
    "GradWatch sends no messages to the addresses in `notify`: they hold secrets and so do not travel to other "
    "processes or through pickles. To cure it: put them into the environment variable GRADWATCH_NOTIFY."
)
_LOST_PARTS = (
    "GradWatch cannot read these parts of the checkpoint and starts them afresh: {}. All the others go on, and so does "
    "training."
)
_UNHEARD_BATCHES = 20
_UNHEARD = (
    "No gradient has reached GradWatch in {num_batches} batches, so it can say nothing about this run. Either the "
    "optimizer steps within the backward pass and takes the gradient away; or it steps behind Lightning's back, by "
    "`step()` of the torch optimizer itself; or `training_step` returned None; or nothing requires a gradient in the "
    "optimizers that `configure_optimizers` returned. Try: after `self.manual_backward(loss)`, call `step()` of what "
    "`self.optimizers()` returns; or, for a single optimizer that keeps its own ways but steps after the backward "
    'pass, `GradWatch(sample_at="backward")`.'
)
_CLIPPED_TWICE = (
    "GradWatch: `auto_clip` clips each gradient before `self.clip_gradients(...)` of the model clips it once more. To "
    "cure it: leave one of them out."
)
_CHANGED = (
    "GradWatch: the gradient changes between the backward pass and the optimizer's step ({before:.3g} became "
    "{after:.3g} at step {step}), so the model's own code, or another callback, clips or edits it. All norms are those "
    "after that. To see them before: in manual optimization, clip with `self.clip_gradients(...)`; otherwise let the "
    "Trainer, or `auto_clip`, do it."
)
_ELSEWHERE = (
    "GradWatch keeps no flight record and no alerts file of this run: they need a local directory, and the logger's is "
    "a URL."
)
_DECISION_STEPS = 50
_THINNED = (
    "Watching has cost {:.1f} % of the steps' time. To hold max_overhead={:g}, GradWatch takes a full sample about "
    "every {} steps instead of every {}; the norms of every step stay."
)

_UNSEEN = BatchCheck(None, Coverage.NOTHING)

P = ParamSpec("P")
ClipName = Literal["percentile", "zscore", "agc", "adagc", "norm", "value"]
Changes = list[tuple[Event, Alert]]
AutoClip = bool | float | ClipName | ClipPolicy | Sequence[float | ClipName | ClipPolicy] | None


def _survives(hook: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """The training run always survives us: a failure becomes one warning, and GradWatch switches itself off."""

    @functools.wraps(hook)
    def guarded(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._run.is_off:
            return
        cost = self._run.cost
        start = cost.clock()
        try:
            hook(self, *args, **kwargs)
        except GradientAlertError:
            raise
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._switch_off(hook.__name__, traceback.format_exc())
        finally:
            cost.spent += cost.clock() - start

    return guarded


@dataclass
class _Post:
    """A watcher at its post: the optimizer it watches, and where it stands on Lightning's x-axis."""

    optimizer: Optimizer
    watcher: Watcher
    num_points: int | None = None
    last_finished: int | None = None
    is_early: bool = False

    def begin_batch(self) -> None:
        """Take the next gradient for a new one where the model has clipped one by hand and then made no step."""
        if self.is_early:
            self.is_early, self.last_finished = False, None

    def is_observed(self, num_finished: int) -> bool:
        """Whether this is a further evaluation within a step that has been observed: SAM and LBFGS make several."""
        is_same, self.last_finished = num_finished == self.last_finished, num_finished
        return is_same


@dataclass
class _Run:
    """What belongs to one ``fit`` and must not outlive it."""

    is_off: bool = False
    is_over: bool = False
    trainer: weakref.ref[Trainer] | None = None
    pid: int = field(default_factory=os.getpid)
    model: LightningModule | None = None
    probe: Probe | None = None
    posts: dict[int, _Post] = field(default_factory=dict)
    loss: Tensor | None = None
    inputs: BatchCheck = _UNSEEN
    sinks: Sinks = field(default_factory=Sinks)
    actions: Actions | None = None
    prescriber: Prescriber | None = None
    signals: SignalWatch | None = None
    rng_state: bytes | None = None
    batch_idx: int = 0
    observations_in_batch: int = 0
    is_stepping: bool = True
    is_blind: bool = False
    is_unheard: bool = False
    is_clipping: bool = True
    ending: str | None = None
    summary: RunSummary = field(default_factory=RunSummary)
    num_batches: int = 0
    num_steps: int = 0
    first_weights: list[Tensor] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    num_samples: int = 0
    num_decisions: int | None = None
    is_thinned: bool = False
    has_counted: bool = False
    forget_clipping: Callable[[], None] | None = None
    compares: bool = False
    has_told_twice: bool = False
    told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.optional = OptionalFigures(self.tell)

    def tell(self, line: str) -> None:
        """Warn once of what the watch, or several of them, must do without."""
        if line not in self.told:
            self.told.add(line)
            _lightning.warn(line)

    def belongs_to(self, trainer: Trainer) -> bool:
        """Whether it is this Trainer's, and not that of another one nearby, nor of the parent of a forked process."""
        return self.trainer is not None and self.trainer() is trainer and self.pid == os.getpid()

    @property
    def has_seen_gradients(self) -> bool:
        """Whether any optimizer's gradients have come by."""
        return any(post.watcher.num_steps for post in self.posts.values())

    def detach_probe(self) -> None:
        """Leave no hook on the model."""
        if self.probe is not None:
            self.probe.detach()

    def leave(self) -> None:
        """Leave no hook on the model, no handler of signals, and nothing on Lightning's own objects.

        All of it is attempted, whatever fails on the way.
        """
        stop = None if self.signals is None else self.signals.stop
        watchers = [post.watcher.close for post in self.posts.values()]
        with contextlib.ExitStack() as attempts:
            for undo in (*watchers, stop, self.forget_clipping, self.detach_probe):
                if undo is not None:
                    attempts.callback(attempt, undo)

    def release(self) -> None:
        """The same, and neither a veil on the model nor a message is left behind; what comes later is another run's."""
        self.is_over = True
        if self.probe is not None:
            attempt(self.probe.close)
        self.prescriber = None
        self.leave()
        self.sinks.close()


class GradWatch(Callback):
    """Watches the gradients of a training run: logs them per layer, and alerts with cause and remedy when they ail.

    Gradients are observed after the backward pass that completes each optimizer step: complete (accumulation done),
    unscaled (the AMP loss scale divided out) and not yet clipped. Norms are taken at every step on the device; what
    costs more is taken on sampled steps only. Nothing is changed: weights after training are bit-identical with and
    without GradWatch.

    Args:
        sample_at: ``"step"`` observes the complete gradient before each optimizer step. ``"backward"`` observes after
            every backward pass instead: under gradient accumulation the running sum of the micro-batches so far, under
            DDP before the ranks are averaged if the backward pass did not synchronise. It needs a single optimizer.
        dense_steps: Number of steps at the start of training of which each takes a full sample (gradients at layer
            outputs; the first and every fifth one also weight norms, zero fractions, updates and inputs).
        sample_every_n_steps: Average distance of full samples after that, with jitter that is equal on all ranks.
        log_every_n_steps: Steps between two publications to the loggers; None for the Trainer's own.
        histogram_every: Every how many publications a histogram of log10|g| per layer is written; 0 for never.
        include: Globs over layer names (module paths) to report per layer; None for all. The total norm is always over
            all gradients.
        exclude: Globs over layer names not to report.
        group_by: Number of leading path components by which layers share a row in the standard dashboards; None for
            one row per layer, or per module if there are more than 50 layers.
        auto_clip: Clips the gradients after they have been measured, at every optimizer step: True for the default
            policy, ``"percentile"``, ``"zscore"``, ``"agc"``, ``"adagc"``, ``"norm"`` or ``"value"``, a number for a
            fixed maximum of the total norm, a policy such as ``Percentile(5)``, or several of them, each for the layers
            that it includes (a gradient is clipped by the first that wants it). None for no clipping.
        compose_clipping: Whether ``auto_clip`` may work before the Trainer's own ``gradient_clip_val``.
        on_nonfinite: What to do with a step whose gradient is NaN or infinite, where no loss scaler skips it anyway:
            ``"keep"``, ``"skip"`` (weights and optimizer state stay as they are; but for fused optimizers the host then
            reads one number per step) or ``"raise"``, a :class:`GradientAlertError` (the same price).
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` alerts; 0.5 means that the gradient shrinks by two
            decades, a factor of 100, between the loss end and the input end.
        notify: Where messages about alerts go, as addresses of Apprise (``pip install 'lightning-gradwatch[notify]'``),
            besides those in the environment variable ``GRADWATCH_NOTIFY``: better there, where no secret is in code.
        tensorboard_url: Address of a TensorBoard that shows the run, for a link in messages.
        on_alert: What to do when an alert opens, notices apart: ``"warn"``, ``"checkpoint"`` (saves one before the
            optimizer step at which the alert is noticed, or after it under accumulation and in manual optimization; NaN
            may have spoilt the weights by then, unless ``on_nonfinite`` is ``"skip"``), ``"stop"`` (the end of
            training after the batch), ``"raise"`` (a :class:`GradientAlertError`), a function that takes the
            :class:`Alert`, or a dict of these by ``alert.kind``. What rank zero saw is done on all ranks, on several at
            the next step at which a sample is scheduled.
        flight_steps: Number of steps whose norms, losses and whereabouts are written to a file beside the logs at an
            alert, an exception, a signal and the end of training; 0 for no such file.
        progress_bar: Whether the progress bar shows the score of ``vanishing`` once it is half of the threshold.
        max_overhead: What watching may cost, as a fraction of the time of the steps: 0.01 is 1 %. Where the host's own
            time is above it, full samples are taken less often, alike on all ranks; the dense start, and the norms of
            every step, stay. None for no budget. On a GPU it is the host's time, not the device's.
        prescribe: Whether remedies are tried on a copy of the model when the first alert of the run is noticed, with
            the batch at hand, as :func:`~lightning_gradwatch.prescribe` does; training waits for at most 60 seconds, or
            the number given. Rank zero does it alone, and not where the model is sharded.

    Raises:
        ValueError: If an argument is out of its range, or ``sample_at="backward"`` is combined with ``auto_clip`` or
            ``on_nonfinite``. When training starts, if a glob of ``include`` matches no layer or no layer is left to
            watch; if the Trainer's strategy is none of a single device, DDP and ModelParallelStrategy (FSDP1, DeepSpeed
            and XLA, for example); if ``auto_clip`` meets ``gradient_clip_val`` without ``compose_clipping``, or LBFGS;
            if a policy is for an optimizer that is not there, or cannot clip sharded parameters; or if there are
            several optimizers with ``sample_at="backward"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradWatch()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        sample_at: Literal["step", "backward"] = "step",
        dense_steps: int = 20,
        sample_every_n_steps: int = 10,
        log_every_n_steps: int | None = None,
        histogram_every: int = 10,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        group_by: int | None = None,
        auto_clip: AutoClip = None,
        compose_clipping: bool = False,
        on_nonfinite: Literal["keep", "skip", "raise"] = "keep",
        vanishing_threshold: float = 0.5,
        notify: Sequence[Address] | Address | None = None,
        tensorboard_url: str | None = None,
        on_alert: OnAlert = "warn",
        flight_steps: int = 200,
        progress_bar: bool = False,
        max_overhead: float | None = None,
        prescribe: bool | float = False,
    ) -> None:
        if sample_at not in ("step", "backward"):
            raise refuse("sample_at", '"step" or "backward"', sample_at, 'use "step" unless you want every micro-batch')
        if log_every_n_steps is not None:
            require("log_every_n_steps", log_every_n_steps, 1, "leave it out to follow the Trainer")
        if group_by is not None:
            require("group_by", group_by, 1, "leave it out for one row per layer or module")
        require("histogram_every", histogram_every, 0, "use 0 for no histograms")
        require_fraction("vanishing_threshold", vanishing_threshold, "0.5 is a loss of two decades, 1.0 one of four")
        if max_overhead is not None:
            require_fraction("max_overhead", max_overhead, "0.01 is 1 % of the time of a step; None is no budget")
        if on_nonfinite not in ("keep", "skip", "raise"):
            raise refuse("on_nonfinite", '"keep", "skip" or "raise"', on_nonfinite, "leave it out to keep the step")
        if sample_at == "backward" and (auto_clip or on_nonfinite != "keep"):
            came = f'"backward" with auto_clip={auto_clip!r} and on_nonfinite={on_nonfinite!r}'
            raise refuse("sample_at", '"step" to clip or skip whole steps', came, "leave sample_at out")
        require("flight_steps", flight_steps, 0, "use 0 for no flight record")
        if tensorboard_url is not None and not str(tensorboard_url).startswith(("http://", "https://")):
            raise refuse("tensorboard_url", "an address", tensorboard_url, 'for example "http://localhost:6006"')
        self.notify = Addresses("notify", notify)
        self.tensorboard_url = tensorboard_url
        self.on_alert = require_actions(on_alert)
        self.prescribe_seconds = require_seconds(prescribe)
        self.flight_steps = flight_steps
        self.progress_bar = progress_bar
        self.compose_clipping = compose_clipping
        self.sample_at = sample_at
        self.log_every_n_steps = log_every_n_steps
        self.group_by = group_by
        self.max_overhead = max_overhead
        self.settings = Settings(
            schedule=Schedule(dense_steps, sample_every_n_steps),
            histogram_every=histogram_every,
            include=require_globs("include", () if include is None else include),
            exclude=require_globs("exclude", () if exclude is None else exclude),
            vanishing_threshold=vanishing_threshold,
            policies=make_policies(auto_clip),
            on_nonfinite=on_nonfinite,
        )
        self._alert_log = AlertLog()
        self._restored: dict[str, Any] = {}
        self._lost: list[str] = []
        self._run = _Run()

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes arguments and alerts along, not the run (nor the Trainer's own additions)."""
        added_by_trainer = ("log", "log_dict")
        return {**{k: v for k, v in self.__dict__.items() if k not in added_by_trainer}, "_run": _Run()}

    @property
    def alerts(self) -> list[Alert]:
        """The alerts of this run so far, oldest first (the last 1,000); an open one has no ``until_step``."""
        return list(self._alert_log.alerts)

    @property
    def profile(self) -> dict[str, float]:
        """Gradient norm at each layer's output in the latest full sample, the input end first.

        Of layers that own a matrix; where outputs could not be observed, the norms of the weights' gradients. With
        several optimizers one network follows the other. Empty before the first sample.
        """
        return {name: norm for post in self._run.posts.values() for name, norm in post.watcher.profile.items()}

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; a Trainer takes no two callbacks of the same key."""
        return _KEY

    def is_busy(self, trainer: Trainer) -> bool:
        """Whether it is watching another Trainer, which may have called this one in a hook or a thread."""
        other = self._run.trainer() if self._run.trainer is not None else None
        return other is not trainer and self._run.pid == os.getpid() and _lightning.is_fitting(other)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be watched correctly, before anything has been spent on it."""
        if stage != "fit":
            return
        if self.is_busy(trainer):
            _lightning.set_callbacks(trainer, [c for c in _lightning.callbacks(trainer) if c is not self])
            _lightning.warn(_BUSY)
            return
        is_another = self._run.model is not pl_module
        self._run = _Run(trainer=weakref.ref(trainer), model=pl_module)
        if is_another or trainer.global_step == 0:
            self._alert_log, self._restored, self._lost = AlertLog(), {}, []
        twins = [c for c in _lightning.callbacks(trainer) if isinstance(c, GradWatch) and c.state_key == self.state_key]
        if len(twins) > 1:
            cure = "leave the others out, in the Trainer or in `configure_callbacks`"
            raise refuse("callbacks", "a list with one GradWatch", f"{len(twins)} of them", cure)
        _lightning.refuse_unsupported(trainer)
        if self.settings.policies and _lightning.clips_gradients(trainer) and not self.compose_clipping:
            rule = "None where the Trainer clips by its own `gradient_clip_val`"
            cure = "leave one of them out, or set compose_clipping=True to clip twice, GradWatch first"
            raise refuse("auto_clip", rule, list(self.settings.policies), cure)
        if not _lightning.builds_layers_later(pl_module):
            self._check_selections(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a selection of nothing also where the layers are made in ``configure_model`` or ``setup``."""
        self._check_selections(pl_module)
        self._run.rng_state = _rng_state()

    def _check_selections(self, pl_module: LightningModule) -> None:
        selections = [(chosen.include, chosen.exclude) for chosen in self.settings.policies]
        for include, exclude in [(self.settings.include, self.settings.exclude), *selections]:
            if include or exclude:
                check_selection(pl_module, tuple(include), tuple(exclude))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a watch for every optimizer."""
        num_optimizers = len(trainer.optimizers)
        if self.sample_at == "backward" and num_optimizers > 1:
            came = f"backward with {num_optimizers} optimizers"
            raise refuse("sample_at", '"step" where there are several optimizers', came, "leave the argument out")
        if not self._run.is_off:
            self._check_clipping(trainer)
            if any(action != "warn" for action in self.on_alert.values()):
                self._run.actions = Actions(self.on_alert, self.settings.schedule)
        self._start(trainer, pl_module)
        for post in self._run.posts.values():
            post.watcher.check_clipping()

    def _check_clipping(self, trainer: Trainer) -> None:
        """Refuse policies for optimizers that are not there, and optimizers that cannot be clipped."""
        optimizers = list(trainer.optimizers)
        together = zip(_lightning.optimizer_names(optimizers), optimizers, strict=True)
        names = [name or type(optimizer).__name__ for name, optimizer in together]
        for policy in self.settings.policies:
            require_optimizer(policy, names)
        if self.settings.policies and any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
            cure = "leave auto_clip out; LBFGS finds the length of its steps by itself"
            raise refuse("auto_clip", "None with LBFGS, which needs true gradients", list(self.settings.policies), cure)

    @_survives
    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._run.belongs_to(trainer):  # put among the callbacks too late to hear of the end
            return
        optimizers = list(trainer.optimizers)
        run = self._run
        run.sinks = self._make_sinks(trainer)
        if self.prescribe_seconds and trainer.is_global_zero:
            run.prescriber = Prescriber(self.prescribe_seconds, any(alert.prescription for alert in self.alerts))
        run.probe = Probe({}, ()) if _lightning.is_compiled(pl_module) else make_probe(pl_module)
        if not run.probe.can_see:
            _lightning.inform(_COMPILED)
        names = _lightning.optimizer_names(optimizers)
        run.sinks.open(_lightning.loggers(trainer), names)
        for optimizer, name in zip(optimizers, names, strict=True):
            self._watch(pl_module, optimizer, name)
        if self.sample_at == "step":
            run.compares = _lightning.may_change_gradients(trainer, pl_module, self)
            if _lightning.is_manual(pl_module):
                look = functools.partial(self._observe_early, trainer, pl_module)
                run.forget_clipping = _lightning.before_clipping_by_hand(trainer, look)
        if self._lost:
            further = f" and {len(self._lost) - 5} more" if len(self._lost) > 5 else ""
            _lightning.warn(_LOST_PARTS.format(", ".join(self._lost[:5]) + further))
            self._lost = []
        self._handle(trainer, Report())

    def _make_sinks(self, trainer: Trainer) -> Sinks:
        """Those of rank zero; the other ranks have nothing to say."""
        if not trainer.is_global_zero:
            return Sinks()
        name, log_dir = _lightning.run_name(trainer), _lightning.log_dir(trainer)
        if _lightning.is_url(_lightning.place_of_run(trainer) or ""):
            _lightning.inform(_ELSEWHERE)
        is_kept = log_dir is not None and self.flight_steps > 0
        flight = FlightRecorder(str(log_dir), self.flight_steps, _about(trainer, name)) if is_kept else None
        is_resumed = trainer.global_step > 0
        sinks = Sinks(log_dir, is_resumed, self.group_by, name, self._make_notifier(trainer, name), flight)
        if is_resumed:
            sinks.repeat(self.alerts)
        if flight is not None:
            self._run.signals = SignalWatch(lambda signal: sinks.dump(signal, self.alerts, may_wait=False))
            self._run.signals.start()
        return sinks

    def _make_notifier(self, trainer: Trainer, name: str) -> Notifier | None:
        if self.notify.were_lost:
            _lightning.warn(_LOST_ADDRESSES)
        addresses = [self.notify]
        try:
            addresses.append(Addresses.from_environment())
        except ValueError as refusal:
            if is_the_users(refusal):
                raise
            _lightning.warn(str(refusal))  # whoever set the variable is not there to read an error
        servers = [server for some in addresses for server in some]
        is_wanted = bool(servers) and not _lightning.is_dev_run(trainer)
        return Notifier(servers, name, self.tensorboard_url) if is_wanted else None

    @_survives
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember from which random state the order of the batches follows."""
        flight = self._run.sinks.flight
        if flight is not None:
            flight.begin_epoch(trainer.current_epoch, self._run.rng_state or _rng_state())
            flight.describe(batches=_lightning.about_batches(trainer))
        self._run.rng_state = None

    def _watch(self, pl_module: LightningModule, optimizer: Optimizer, name: str) -> _Post:
        watcher = Watcher(pl_module, optimizer, self.settings, self._run.probe, name, self._run.tell)
        if name in self._restored:
            watcher.load_state_dict(
                Saved(self._restored.pop(name), self._lost, f"watchers.{name}" if name else "watcher")
            )
        watcher.thinning = max([watcher.thinning, *(post.watcher.thinning for post in self._run.posts.values())])
        self._run.posts[id(optimizer)] = post = _Post(optimizer, watcher)
        return post

    def _post_of(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> _Post | None:
        """The watch over an optimizer; one that has taken another's place in the Trainer takes over its watch."""
        post = self._run.posts.get(id(optimizer))
        if post is None and any(optimizer is known for known in trainer.optimizers):
            alive = {id(known) for known in trainer.optimizers}
            for key in [key for key in self._run.posts if key not in alive]:
                old = self._run.posts.pop(key)
                self._handle(trainer, old.watcher.flush(publish=False))
                self._restored[old.watcher.name] = old.watcher.state_dict()
            names = _lightning.optimizer_names(trainer.optimizers)
            place = next(i for i, known in enumerate(trainer.optimizers) if known is optimizer)
            post = self._watch(pl_module, optimizer, names[place])
            self._count_points(trainer)
        return post

    def _count_points(self, trainer: Trainer) -> None:
        """Start from the points that are past: not before the first batch, when Lightning has resumed its x-axis."""
        for post in self._run.posts.values():
            if post.num_points is None:
                past = _lightning.num_log_points(trainer, self.log_every_n_steps, with_coming_step=False)
                post.num_points = past

    @_survives
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm the probe if a step of this batch will be sampled."""
        run = self._run
        run.batch_idx = batch_idx
        run.cost.begin_step()
        if not run.has_counted:
            self._count_points(trainer)
            run.has_counted = True
        further = max(run.observations_in_batch - 1, 0)
        for post in run.posts.values():
            post.begin_batch()
        due = [post for post in run.posts.values() if post.watcher.is_due(further)]
        if due and run.probe is not None and not (run.is_unheard and not run.has_seen_gradients):
            run.probe.attach(any(post.watcher.is_thorough for post in run.posts.values()))
        inputs = run.optional.take("batch", _UNSEEN, check_batch, batch)
        run.inputs = inputs if run.is_stepping else join(run.inputs, inputs)
        run.loss = None
        run.observations_in_batch = 0
        run.is_stepping = False
        if run.prescriber is not None:
            run.optional.take(
                "remedies", None, run.prescriber.begin_batch, _lightning.x_axis(trainer), pl_module, batch
            )

    @_survives
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Remember the loss; it is read together with the gradients. An object that stands for several is not known."""
        if self._run.probe is not None:
            self._run.probe.account.begin_backward()
        if not isinstance(loss, Tensor):
            return
        for post in self._run.posts.values():
            post.watcher.inspect(loss)
        divisor = _lightning.accumulated_batches(trainer)
        self._run.loss = loss.detach() * divisor if divisor > 1 else loss.detach()

    @_survives
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe, if every backward pass is to be observed."""
        if self._run.probe is not None:
            self._run.probe.account.end_backward()
        if self._run.compares:
            for post in self._run.posts.values():
                post.watcher.note_backward()
        if self.sample_at == "backward" and self._run.posts:
            (post,) = self._run.posts.values()
            self._run.is_stepping = _lightning.completes_a_step(trainer)
            publish = self._run.is_stepping and self._is_log_point(trainer, post)
            self._observe(trainer, post, publish, gradients_scaled=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe the complete, unscaled, unclipped gradient, and clip it; clip also after the watch has failed."""
        self._observe_step(trainer, pl_module, optimizer)
        run, post = self._run, self._run.posts.get(id(optimizer))
        intervenes = bool(self.settings.policies) or self.settings.on_nonfinite != "keep"
        if run.is_off and run.is_clipping and post is not None and intervenes:
            self._intervene_alone(trainer, post)
        if self._run.actions is not None:
            self._act(trainer, self._run.actions, is_before_step=True)
        if self._run.prescriber is not None and self._prescribe(trainer, pl_module, is_before_step=True):
            self._run.cost.begin_step()

    def _intervene_alone(self, trainer: Trainer, post: _Post) -> None:
        """Clip or skip though the watch has failed."""
        is_fatal = False
        try:
            scaled = _lightning.unscales_itself(post.optimizer)
            is_fatal = post.watcher.clip_only(loss_scale=_lightning.loss_scale(trainer), gradients_scaled=scaled)
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._run.is_clipping = False
            _lightning.warn(f"GradWatch can no longer clip the gradients.\n{traceback.format_exc()}")
        if is_fatal:
            raise GradientAlertError([])

    def _act(self, trainer: Trainer, actions: Actions, is_before_step: bool) -> None:
        """Act where all ranks come by equally often, also those on which the watch has failed.

        A checkpoint from before the step replays the batch; but not where a part of the step is already done.
        """
        is_one_step = _lightning.steps_once_per_batch(trainer)
        if is_one_step == is_before_step:
            actions.decide(trainer)
        is_whole = (
            _lightning.accumulated_batches(trainer) == 1 if is_before_step else _lightning.completes_a_step(trainer)
        )
        if is_whole and is_one_step >= is_before_step:
            actions.save(trainer)

    @_survives
    def _observe_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        run = self._run
        run.is_stepping = True
        run.num_steps += 1
        if run.loss is None and _lightning.steps_only_with_a_loss(trainer, pl_module):
            return
        post = self._post_of(trainer, pl_module, optimizer) if self.sample_at == "step" else None
        if post is None:
            return
        if post.is_early:  # the model has clipped it since
            post.is_early = False
            return
        self._look_at(trainer, post, _lightning.unscales_itself(optimizer))

    @_survives
    def _observe_early(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe the gradient of the coming step before the model clips it by hand."""
        post = self._post_of(trainer, pl_module, optimizer)
        if post is None:
            return
        if self.settings.policies and not self._run.has_told_twice:
            self._run.has_told_twice = True
            _lightning.warn(_CLIPPED_TWICE)
        self._look_at(trainer, post, _lightning.still_scaled(trainer, optimizer))
        post.is_early = True

    def _look_at(self, trainer: Trainer, post: _Post, scaled: bool) -> None:
        """Observe a step at its first evaluation; clip or skip at the further ones."""
        if post.is_observed(_lightning.num_finished_steps(trainer)):
            self._intervene_again(trainer, post, scaled)
        else:
            self._observe(trainer, post, self._is_log_point(trainer, post), scaled)

    def _intervene_again(self, trainer: Trainer, post: _Post, scaled: bool) -> None:
        """Clip or skip a further evaluation within a step: what the optimizer is given last is what it applies."""
        scale = _lightning.loss_scale(trainer)
        if post.watcher.intervene_again(loss_scale=scale, gradients_scaled=scaled and scale is not None):
            raise GradientAlertError([])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the probe away once the optimizer has stepped, look at the cost, and do what alerts ask for."""
        self._end_batch(pl_module)
        if self._run.actions is not None:
            self._act(trainer, self._run.actions, is_before_step=False)
        if self._run.prescriber is not None:
            self._prescribe(trainer, pl_module, is_before_step=False)
            self._run.prescriber.end_batch()
        if self.max_overhead is not None:
            try:
                self._hold_budget(trainer, self.max_overhead)
            except Exception as failure:
                if is_the_users(failure):
                    raise
                self._switch_off("on_train_batch_end", traceback.format_exc())

    def _prescribe(self, trainer: Trainer, pl_module: LightningModule, is_before_step: bool) -> bool:
        """Try remedies if an alert asks for it; whether it took time. A failure costs a warning, and nothing else."""
        run, prescriber = self._run, self._run.prescriber
        alert = prescriber.due(is_before_step) if prescriber is not None and not run.is_off else None
        if prescriber is None or alert is None:
            return False
        try:
            optimizer = next((p.optimizer for p in run.posts.values() if p.watcher.name == alert.optimizer), None)
            treated = run.sinks.prescribed(alert) or prescriber.treat(
                alert, trainer, pl_module, optimizer, self.settings.policies
            )
            if treated is not None:
                run.sinks.tell("prescribed", self._alert_log.amend(treated))
                loggers, num_alerts = _lightning.loggers(trainer), self._alert_log.num_alerts
                run.sinks.write_alerts(loggers, self._alert_log.alerts, num_alerts, is_last=False)
        except Exception as failure:
            if is_the_users(failure):
                raise
            _lightning.warn(f"GradWatch could not try remedies ({failure!r}); training goes on.")
        return True

    @_survives
    def _end_batch(self, pl_module: LightningModule) -> None:
        run = self._run
        if run.probe is not None:
            run.cost.spent, run.probe.seconds = run.cost.spent + run.probe.seconds, 0.0
        num_samples = sum(post.watcher.num_samples for post in run.posts.values())
        run.cost.end_step(num_samples > run.num_samples)
        run.num_samples = num_samples
        if run.is_stepping:
            run.detach_probe()
        if run.probe is not None and run.probe.left_out and not run.is_blind:
            run.is_blind = True
            layer, why = next(iter(run.probe.left_out.items()))
            failure = run.probe.failure
            _lightning.warn(_PARTLY_BLIND.format(layer, why) if failure is None else _BLIND + failure)
        if not run.is_unheard and not run.has_seen_gradients:
            self._listen(pl_module)

    def _hold_budget(self, trainer: Trainer, budget: float) -> None:
        """Sample less often if it costs too much, at steps that are published: alike, and together, on all ranks.

        Ranks on which the watch has failed take part, so that the others do not wait for them.
        """
        run = self._run
        every = self.log_every_n_steps or getattr(trainer, "log_every_n_steps", 0) or _DECISION_STEPS
        every *= -(-_DECISION_STEPS // every)
        before, run.num_decisions = run.num_decisions, _lightning.num_log_points(trainer, every, with_coming_step=False)
        if before is None or run.num_decisions == before:
            return
        watchers = [post.watcher for post in run.posts.values()]
        present, every_n_steps = max((w.thinning for w in watchers), default=1), self.settings.schedule.every_n_steps
        thinning = _lightning.as_on_rank_zero(trainer, run.cost.thinning(budget, every_n_steps, present))
        for watcher in watchers:
            watcher.thinning = thinning
        if thinning > 1 and not run.is_thinned:
            run.is_thinned = True
            _lightning.inform(_THINNED.format(run.cost.percent or 0.0, budget, every_n_steps * thinning, every_n_steps))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look away: under accumulation a model may be validated in the middle of a step."""
        self._look_away()

    @_survives
    def _look_away(self) -> None:
        if self._run.probe is not None:
            self._run.probe.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look again."""
        self._look_again()

    @_survives
    def _look_again(self) -> None:
        if self._run.probe is not None:
            self._run.probe.resume()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is left, and do what its alerts ask for."""
        if not self._run.belongs_to(trainer):
            return
        self._complete(trainer)
        if self._run.actions is not None:
            self._run.actions.decide(trainer, is_last=True)
            self._run.actions.save(trainer)

    @_survives
    def _complete(self, trainer: Trainer) -> None:
        self._finish(trainer, "end")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Publish what is left and remove every hook: ``teardown`` is not called when ``fit`` raises."""
        if self._run.belongs_to(trainer) and not self._run.is_over:
            self._break_off(trainer, exception)
            self._release()

    @_survives
    def _break_off(self, trainer: Trainer, exception: BaseException) -> None:
        """Keep the flight record before anything else: what broke the run may break us, and the device, too."""
        self._run.ending = reason = type(exception).__name__
        self._run.sinks.dump(reason, self.alerts, may_wait=False)
        self._finish(trainer, reason, together=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove every hook."""
        if self._run.belongs_to(trainer):
            self._release()

    def _release(self) -> None:
        try:
            self._run.release()
        except Exception as failure:
            if is_the_users(failure):
                self._run.leave()
                raise
            self._switch_off("teardown", traceback.format_exc())

    def state_dict(self) -> dict[str, Any]:
        """Counters, windows, detectors and alerts: tensors and primitives, so it loads with ``weights_only=True``."""
        state: dict[str, Any] = {"version": _STATE_VERSION, **self._alert_log.state_dict()}
        try:
            state["watchers"] = {**self._restored, **self._watcher_states()}
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._switch_off("state_dict", traceback.format_exc())
        return state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on, too, where a GradWatch from the environment has watched so far, or the other way round."""
        states = checkpoint.get("callbacks") or {}
        others = [checkpoint.get(GUEST_KEY), *(states.get(key) for key in (_KEY, GUEST_KEY))]
        if self.state_key not in states:  # otherwise Lightning hands it over
            for state in [state for state in others if state][:1]:
                self.load_state_dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written.

        What it lacks, or has in a form that cannot be read, starts afresh, part by part; the latter is said in one line
        when training starts.
        """
        try:
            saved = Saved(state_dict)
            version = saved.take("version", int, _STATE_VERSION)
            if version != _STATE_VERSION:
                raise ValueError(f"version {version} instead of {_STATE_VERSION}")
            self._alert_log.load_state_dict(saved)
            watchers = saved.part("watchers")
            self._restored = {name: watchers.take(name, dict[str, Any], {}) for name in watchers}
            self._lost = saved.lost
        except Exception as failure:
            if is_the_users(failure):
                raise
            _lightning.warn(f"GradWatch cannot go on from this checkpoint and starts afresh ({failure!r}).")

    def _listen(self, pl_module: LightningModule) -> None:
        """Say so, once, if the weights move, or steps are taken, and no gradient comes to where it is looked for."""
        run = self._run
        run.num_batches += 1
        if run.num_batches == 1:
            run.first_weights = _weights(pl_module)
        if run.num_batches % _UNHEARD_BATCHES:
            return
        if run.num_steps >= _UNHEARD_BATCHES or _has_moved(pl_module, run.first_weights):
            run.is_unheard = True
            run.detach_probe()
            _lightning.warn(_UNHEARD.format(num_batches=run.num_batches))

    def _is_log_point(self, trainer: Trainer, post: _Post) -> bool:
        """Whether the loggers were due since the last publication, at this step or at one without this optimizer."""
        num_points = _lightning.num_log_points(trainer, self.log_every_n_steps)
        is_due, post.num_points = num_points > (post.num_points or 0), num_points
        return is_due

    def _observe(self, trainer: Trainer, post: _Post, publish: bool, gradients_scaled: bool) -> None:
        self._run.observations_in_batch += 1
        scale, step = _lightning.loss_scale(trainer), _lightning.x_axis(trainer)
        flight = self._run.sinks.flight
        if flight is not None:
            groups, epoch = post.optimizer.param_groups, trainer.current_epoch
            flight.begin_step(post.watcher.name, step, epoch, self._run.batch_idx, groups, scale)
        report = post.watcher.observe(
            step,
            self._run.loss,
            inputs=self._run.inputs,
            loss_scale=scale,
            gradients_scaled=gradients_scaled and scale is not None,
            publish=publish,
        )
        if report.has_news:
            self._handle(trainer, report)
        fatal = [a for a in report.alerts if a.kind == "nonfinite" and a.until_step is None]
        if fatal and scale is None and self.settings.on_nonfinite == "raise":
            raise GradientAlertError(fatal)

    def _handle(self, trainer: Trainer, report: Report) -> None:
        self._tell(trainer, report, self._take_in(report))

    def _take_in(self, report: Report) -> Changes:
        """Remember what a report says; what has become of the alerts in it."""
        changes = [self._alert_log.record(change) for change in report.alerts]
        self._run.sinks.remember(report.observations, _opened(changes), self._alert_log.alerts)
        return changes

    def _tell(self, trainer: Trainer, report: Report, changes: Changes, is_last: bool = False) -> None:
        """Tell all who want to know."""
        if report.change is not None and self._run.compares:
            self._run.compares = False
            _lightning.warn(_CHANGED.format(**report.change._asdict()))
        opened = _opened(changes)
        for change in changes:
            self._run.sinks.tell(*change)
        if self._run.actions is not None:
            self._run.actions.note(opened)
        if self._run.prescriber is not None:
            self._run.prescriber.note(opened)
        num_alerts = self._alert_log.num_alerts
        if changes or is_last or not report.has_news:
            self._run.sinks.write_alerts(_lightning.loggers(trainer), self._alert_log.alerts, num_alerts, is_last)
        worst = max((post.watcher.vanishing for post in self._run.posts.values()), default=0.0)
        _lightning.set_metrics(trainer, metrics.monitored(worst, num_alerts))
        if self.progress_bar:
            matters = worst >= self.settings.vanishing_threshold / 2
            _lightning.show_in_progress_bar(trainer, "vanishing", f"{worst:.2f}" if matters else None)
        for publication in report.publications:
            priced = replace(publication, overhead_percent=self._run.cost.percent)
            self._run.summary.add(priced)
            self._run.sinks.publish(_lightning.loggers(trainer), priced, num_alerts)

    def _finish(self, trainer: Trainer, reason: str, together: bool = True) -> None:
        run = self._run
        run.ending = reason
        run.detach_probe()
        is_logging = bool(self.log_every_n_steps or getattr(trainer, "log_every_n_steps", 0))
        reports = [post.watcher.flush(is_logging, together) for post in run.posts.values()]
        changes = [self._take_in(report) for report in reports]
        run.sinks.dump(reason, self.alerts)  # before others hear of it: their code may fail
        for report, changed in zip(reports, changes, strict=True):
            self._tell(trainer, report, changed, is_last=True)
        if run.posts:
            log_dir = _lightning.log_dir(trainer) if trainer.is_global_zero else None
            num_steps = max(post.watcher.num_steps for post in run.posts.values())
            about = (run.summary, num_steps, self.alerts, self._alert_log.num_alerts, log_dir)
            run.sinks.conclude(functools.partial(summarise, *about))
        self._restored = {**self._restored, **self._watcher_states()}

    def _watcher_states(self) -> dict[str, Any]:
        return {post.watcher.name: post.watcher.state_dict() for post in self._run.posts.values()}

    def _switch_off(self, hook: str, trace: str) -> None:
        run = self._run
        run.is_off = True
        # what made us fail, such as an error of the device, may be about to end the run
        run.sinks.dump(run.ending or "GradWatch failed", self.alerts, may_wait=False)
        run.leave()
        _lightning.warn(
            f"GradWatch failed in {hook} and has switched itself off; the training itself is not affected.\n{trace}"
        )


def _opened(changes: Changes) -> list[Alert]:
    """Alerts that are new, or have risen from a notice."""
    return [alert for event, alert in changes if event != "ended" and alert.level == "alert"]


def _rng_state() -> bytes:
    """Of torch's generator on the CPU, from which samplers draw."""
    return bytes(torch.get_rng_state().numpy().tobytes())


def _about(trainer: Trainer, run: str) -> dict[str, Any]:
    """What is needed besides to find a batch of the run again."""
    return {
        "run": run,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "num_ranks": _lightning.num_ranks(trainer),
        "accumulate_grad_batches": _lightning.accumulated_batches(trainer),
        "torch": torch.__version__,
        "lightning_gradwatch": lightning_gradwatch.__version__,
    }


def _weights(pl_module: LightningModule) -> list[Tensor]:
    """Numbers that change when the trained weights do, without a host sync."""
    return norms([local(p.detach()) for p in parameters(pl_module) if p.requires_grad and is_measurable(p)])


def _has_moved(pl_module: LightningModule, before: list[Tensor]) -> bool:
    return [norm.item() for norm in _weights(pl_module)] != [norm.item() for norm in before]
