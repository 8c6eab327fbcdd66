"""One optimizer's watch: a gradient walks through the rooms of ``core`` once, from the backward pass to an alert."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.alone import alone
from lightning_gradwatch.core.anatomy import merge, survey
from lightning_gradwatch.core.clip import ClipPolicy
from lightning_gradwatch.core.clip.clippers import NUM_FACTS, Clippers, ClippersState, ClipWindow
from lightning_gradwatch.core.detect import Detector
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.diagnose import explain, explain_nothing
from lightning_gradwatch.core.evidence import Evidence
from lightning_gradwatch.core.figures import Arrangement, LayerFigures, complement, moment_figures, update_figures
from lightning_gradwatch.core.histogram import log_histograms
from lightning_gradwatch.core.layers import (
    Plan,
    make_plan,
    own_parameters,
    owns_matrix,
    running_order,
    uncompiled_layers,
)
from lightning_gradwatch.core.measure import NormWindow, ParameterMeter, norms
from lightning_gradwatch.core.modules import modules
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.records import (
    MISSING,
    NUM_BINS,
    Alert,
    Anatomy,
    BatchCheck,
    Checkup,
    Coverage,
    Finding,
    Observation,
    Publication,
    Sample,
)
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.shards import Kind, Shards
from lightning_gradwatch.core.transfer import Transfer
from lightning_gradwatch.core.updates import NUM_MOMENT_SUMS, NUM_SUMS, UpdateMeter, UpdateState
from lightning_gradwatch.core.window import PublicationWindow

THOROUGH_EVERY = 5
"""Every how many full samples one is thorough."""
BURST_STEPS = 5
"""Steps sampled in a row when something looks wrong, so that it is confirmed or dismissed at once."""
BURST_PAUSE = 20
"""Steps after a burst before the next one."""
STATE_EVERY = 10
"""Steps after which publications measure weights and zeros anew: what changes slowly."""
MAX_SURVEYS = 4
MAX_COMPARISONS = 5
"""Samples at which the gradient after the backward pass is compared with that at the step."""
CHANGED = 0.01
"""By which part a total norm must differ between them to tell of somebody's hand, and not of rounding."""
NUM_INPUT_FACTS = 7
_PUBLISHED = ("output_grad_norm", "weight_norm", "zero_fraction")
"""What a publication shows of the latest sample."""
_KINDS: dict[str, Kind] = {
    "norms": "norm",
    "facts": "mean",
    "weights": "norm",
    "nonzeros": "count",
    "outputs": "rms",
    "updates": "sum",
    "moments": "sum",
    "output_nonzeros": "mean",
    "inputs": "mean",
    "histogram": "sum",
    "clips": "mean",
    "clipped": "mean",
    "after_backward": "mean",
}
"""What is carried from the device to the host, and how ranks that hold parts of it add it up."""


@dataclass(frozen=True)
class Settings:
    """What to watch and how often.

    Attributes:
        schedule: When full samples are taken.
        histogram_every: Every how many publications there is a histogram; 0 for never.
        include: Globs over the names of the layers to report; empty for all.
        exclude: Globs over the names of the layers not to report.
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
        policies: What to clip by; empty for no clipping. A gradient is clipped by the first policy that is for it.
        on_nonfinite: What to do with a step whose gradient is not finite, where no loss scaler skips it anyway:
            ``"keep"`` it, ``"skip"`` it (weights and the optimizer's state stay as they are) or ``"raise"``, which is
            left to the caller: the alert is in the report of that step.
    """

    schedule: Schedule = field(default_factory=Schedule)
    histogram_every: int = 10
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    vanishing_threshold: float = 0.5
    policies: tuple[ClipPolicy, ...] = ()
    on_nonfinite: Literal["keep", "skip", "raise"] = "keep"


class Change(NamedTuple):
    """A gradient that somebody has changed between the backward pass and the step: its total norm on either side."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Report:
    """What a watcher has to say after a step: mostly nothing.

    Attributes:
        alerts: Alerts that opened or ended.
        publications: What is to be written to the loggers.
        has_news: Whether anything has arrived from the device, so that scores may have changed.
        observations: What has arrived.
        change: How somebody has changed a gradient before it was observed; None where nobody did, as far as is known.
    """

    alerts: tuple[Alert, ...] = ()
    publications: tuple[Publication, ...] = ()
    has_news: bool = False
    observations: tuple[Observation, ...] = ()
    change: Change | None = None


@dataclass(frozen=True)
class _Label:
    """What the host has to know about a copy that is under way."""

    step: int
    steps: tuple[int, ...]
    plan: Plan
    known: tuple[tuple[bool, Coverage], ...]
    lr: float | None
    dtypes: frozenset[str]
    anatomy: Anatomy | None
    ran: frozenset[str]
    publish: bool
    is_scaled: bool
    skips: bool


class _SampleState(TypedDict, total=False):
    """What a checkpoint holds of the latest sample."""

    step: int
    output_grad_norm: Tensor
    weight_norm: Tensor
    zero_fraction: Tensor


_NOTHING = Report()


class Watcher:
    """Watches the gradients of one optimizer.

    In a hand-written loop: :meth:`arm` before the forward pass, :meth:`observe` between the backward pass and the
    optimizer's step, :meth:`flush` at the end.

    Args:
        model: The model, whose module paths name the layers.
        optimizer: The optimizer whose parameters are watched.
        settings: What to watch and how often.
        probe: A probe to share between several watchers of one model, attached and detached by the caller; None for one
            of its own.
        name: Name of the optimizer if there are several.
        tell: Takes the line that says which optional figure has failed, and why; None for a warning.

    Attributes:
        num_steps: Steps observed so far.
        num_samples: Full samples taken so far.
        thinning: By how much full samples lie farther apart than the schedule has it; to be set by the caller, alike on
            all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        probe: Probe | None = None,
        name: str = "",
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._optional = OptionalFigures() if tell is None else OptionalFigures(tell)
        self.num_steps = 0
        self.num_samples = 0
        self.thinning = 1
        self._model = model
        self._optimizer = optimizer
        self._settings = settings or Settings()
        self._owns_probe = probe is None
        self._probe = make_probe(model) if probe is None else probe
        self._detector = Detector(self._settings.vanishing_threshold)
        self._evidence = Evidence()
        self._shards = Shards(())
        self._window = PublicationWindow()
        self._transfer: Transfer[_Label] = Transfer()
        self._latest: Sample | None = None
        self._num_publications = 0
        self._order: tuple[str, ...] = ()
        self._num_ordered = 0
        self._steps: list[int] = []
        self._known: list[tuple[bool, Coverage]] = []
        self._step = 0
        self._state_step = -STATE_EVERY
        self._burst_until = 0
        self._is_overdue = False
        self._anatomy: Anatomy | None = None
        self._num_surveys = 0
        self._is_scaled = False
        self._clip_window = ClipWindow()
        self._restored_clips: ClippersState | None = None
        self._late = _NOTHING
        self._restored_rows: Tensor | None = None
        self._restored_updates: UpdateState | None = None
        self._restored_layers: list[str] | None = None
        self._ran: frozenset[str] = frozenset()
        self._groups: list[list[Tensor]] = []
        self._figures: tuple[Plan, LayerFigures] | None = None
        self._after_backward: Tensor | None = None
        self._updates: UpdateMeter | None = None
        self.plan: Plan | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        return {**self._detector.scores, **self._evidence.scores}

    @property
    def vanishing(self) -> float:
        """The vanishing score alone."""
        return self._detector.depth.score

    @property
    def profile(self) -> dict[str, float]:
        """The latest depth profile: gradient norms at layer outputs (or of weights), the input end first."""
        return dict(zip(self._detector.profile.layers, self._detector.profile.norms, strict=True))

    def is_due(self, steps_ahead: int = 0) -> bool:
        """Whether a full sample is due within the coming step and the ``steps_ahead`` steps after it.

        The very first step counts as one: it tells in which order the layers run.
        """
        step = self.num_steps
        if step == 0 or self._is_overdue or self._is_sampled(step):
            return True
        return steps_ahead > 0 and any(self._is_sampled(step + ahead) for ahead in range(1, steps_ahead + 1))

    @property
    def is_thorough(self) -> bool:
        """Whether the next full sample is a thorough one: the first, every fifth, and each one in a burst."""
        turn = self.num_samples % THOROUGH_EVERY
        return self.num_samples == 0 or turn == THOROUGH_EVERY - 1 or self.num_steps < self._burst_until

    def arm(self) -> None:
        """Call before the forward pass: puts the probe in place if the coming step is sampled."""
        if self.is_due():
            self._probe.attach(self.is_thorough)

    def inspect(self, loss: Tensor) -> None:
        """Read what the network is made of off the graph of a loss; only the first few calls do anything.

        Args:
            loss: The loss, attached to its graph.
        """
        if self._num_surveys < MAX_SURVEYS and loss.grad_fn is not None:
            self._num_surveys += 1
            self._anatomy = self._optional.take("anatomy", self._anatomy, self._survey, loss)

    def _survey(self, loss: Tensor) -> Anatomy:
        return merge(self._anatomy, survey(loss, self._model))

    @alone
    def note_backward(self) -> None:
        """Call after a backward pass where somebody may change the gradients before the step.

        On the first few sampled steps alone, a total norm is kept, which :meth:`observe` compares with its own.
        """
        if self.plan is None or self.num_samples >= MAX_COMPARISONS or self._shards.is_spread:
            return
        present = [p.grad for p in self.plan.parameters if p.grad is not None]
        if present and self._is_sampled(self.num_steps):
            self._after_backward = torch.linalg.vector_norm(self._meter.stack(norms(present)))

    def _is_sampled(self, step: int) -> bool:
        return self._settings.schedule.is_due(step, self.thinning) or step < self._burst_until

    @alone
    def observe(
        self,
        step: int | None = None,
        loss: Tensor | None = None,
        *,
        loss_scale: Tensor | None = None,
        gradients_scaled: bool = False,
        inputs: BatchCheck | None = None,
        publish: bool = False,
    ) -> Report:
        """Call between the backward pass and the optimizer's step: takes in the gradients as they are now.

        Args:
            step: Where the step stands on the x-axis; None to count the steps from 0.
            loss: The loss that was differentiated, one element.
            loss_scale: Factor of a loss scaler with which ``loss`` was multiplied before the backward pass, shape
                ``()``; None without a scaler.
            gradients_scaled: Whether the parameters' gradients still carry that factor.
            inputs: :func:`~lightning_gradwatch.core.batch.check_batch` of the batch, to tell bad data from bad weights.
            publish: Whether the loggers are to be written at this step.

        Returns:
            Alerts and publications; empty on a step that is neither sampled nor published, which costs no host sync.
        """
        is_due = self._is_overdue or self._is_sampled(self.num_steps)
        if self.plan is not None and (is_due or publish or self._is_comparing):
            self._follow_kinds(self.plan)
        self._follow_parameters()
        self._follow_order()
        if self.plan is None or not self._device_window.push(loss, loss_scale, gradients_scaled, inputs):
            return self.flush(publish) if publish else _NOTHING
        if loss is not None and self._num_surveys < MAX_SURVEYS:
            self.inspect(loss)
        self._step = self.num_steps if step is None else step
        self._steps.append(self._step)
        self._known.append(self._device_window.known)
        self._is_scaled = loss_scale is not None
        self._is_overdue = is_due and self._probe.can_see and not self._probe.is_attached
        is_sampled = is_due and not self._is_overdue
        if self._updates is not None and self._updates.is_waiting:
            self._optional.take("updates", None, self._updates.compare)
        scale = loss_scale if gradients_scaled else None
        is_old = self._latest is not None and self.num_steps >= self._state_step + STATE_EVERY
        is_wanted = (publish and is_old) or (is_sampled and self._is_stateful)
        tensors = self._take_state() if is_wanted else {}
        if is_sampled:
            tensors.update(self._take_sample(loss_scale))
        if self._after_backward is not None:
            unscaled = self._after_backward if loss_scale is None else self._after_backward / loss_scale
            tensors["after_backward"], self._after_backward = unscaled.view(1), None
        self.num_steps += 1
        if publish and self._histogram_is_due():
            tensors["histogram"] = self._optional.take(
                "histogram",
                self._unknown(len(self.plan.layers), NUM_BINS + 2),
                self._take_histogram,
                self.plan,
                self._local_gradients(),
                scale,
            )
        self._probe.mark_read()
        if self._owns_probe:
            self._probe.detach()
        is_urgent = self._intervenes and self._intervene(scale)
        if is_sampled or publish or is_urgent or self._device_window.is_full:
            return self._send(tensors, publish, is_urgent)
        return _NOTHING

    def check_clipping(self) -> None:
        """Refuse policies that cannot be right on this optimizer's parameters.

        Raises:
            ValueError: If one of them cannot work on parameters that are spread over ranks.
        """
        plan = self._make_plan() if self._policies() else None
        if plan is not None and plan.parameters:
            Clippers(self._policies(), plan.parameters, plan.owners)

    @alone
    def clip_only(self, *, loss_scale: Tensor | None = None, gradients_scaled: bool = False) -> bool:
        """Call instead of :meth:`observe` to clip or skip and do nothing else, as after a failure that ended the watch.

        Returns:
            Whether the gradient is not finite where that is to be raised.
        """
        self._follow_parameters()
        self._is_scaled = loss_scale is not None
        is_fatal = False
        if self.plan is not None and self._device_window.push(None, loss_scale, gradients_scaled):
            is_fatal = self._intervenes and self._intervene(loss_scale if gradients_scaled else None)
            self._drop_rows()
        return is_fatal

    @alone
    def intervene_again(self, *, loss_scale: Tensor | None = None, gradients_scaled: bool = False) -> bool:
        """Call instead of :meth:`observe` at a further evaluation of the loss within the step observed last.

        Clips or skips as there. Nothing is counted, and no policy remembers it: it is one step.

        Returns:
            Whether the gradient is not finite where that is to be raised.
        """
        if self.plan is None or not self._intervenes:
            return False
        if not self._device_window.push(None, loss_scale, gradients_scaled):
            return False
        with self._clippers.without_memory():
            is_fatal = self._intervene(loss_scale if gradients_scaled else None)
        self._device_window.drop_last()
        return is_fatal

    def _intervene(self, scale: Tensor | None) -> bool:
        """Clip or skip the step that was pushed last; whether it must be reported at once."""
        settings = self._settings
        leaves_alone = settings.on_nonfinite == "keep" or self._is_scaled
        norms = self._device_window.norms[-1]
        if self._shards.is_spread:
            norms.copy_(self._shards.reduce({"norms": norms}, _KINDS)["norms"])
        if len(self._clippers):
            self._device_window.note(self._clippers.clip_(norms, scale))
        if leaves_alone:
            return False
        is_finite = norms.isfinite().all()
        if settings.on_nonfinite == "skip":
            skip_step(self._optimizer, is_finite)
            return False
        return not bool(is_finite)

    def let_go(self) -> None:
        """Call at the end: leaves nothing on the optimizer, and nothing on the model."""
        if self._owns_probe:
            self._probe.close()
        for flag in ("found_inf", "grad_scale"):
            if self._settings.on_nonfinite == "skip" and hasattr(self._optimizer, flag):
                delattr(self._optimizer, flag)

    @alone
    def flush(self, publish: bool = True, together: bool = True) -> Report:
        """Bring home what is still on the device, wait for it, and publish it if there is something new.

        Args:
            publish: Whether the loggers are to be written.
            together: Whether all ranks do this now. Otherwise steps whose numbers are still spread over the ranks are
                left behind: after an exception on one of them, waiting for the others would be waiting for ever.
        """
        if self.plan is None:
            return _NOTHING
        if not together and self._shards.is_spread:
            self._drop_rows()
            return self._digest(self._transfer.receive())
        sent = self._send({}, publish)
        return _join(sent, self._digest(self._transfer.receive()))

    @alone
    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives that :meth:`load_state_dict` takes back; loads with ``weights_only=True``.

        Steps since the last sample whose numbers are still spread over ranks are not in it.
        """
        self._late = _join(self._late, self._digest(self._transfer.receive()))
        is_whole = self.plan is None or not self._shards.is_spread
        rows = self._restored_rows if self.plan is None else self._device_window.rows() if is_whole else None
        return {
            "num_steps": self.num_steps,
            "num_publications": self._num_publications,
            "strong": sorted(self._probe.strong),
            "repeated": sorted(self._probe.repeated),
            "order": list(self._order),
            "step": self._step,
            "state_step": self._state_step,
            "steps": list(self._steps) if is_whole else [],
            "known": [[loss, int(coverage)] for loss, coverage in self._known] if is_whole else [],
            "num_samples": self.num_samples,
            "thinning": self.thinning,
            "burst_until": self._burst_until,
            "rows": rows.cpu().clone() if rows is not None else None,
            "clips": self._restored_clips if self.plan is None else self._clippers.state_dict(),
            "clip_window": self._clip_window.state_dict(),
            "updates": self._updates.state_dict() if self._updates and is_whole else self._restored_updates,
            "layers": self._restored_layers if self.plan is None else self._names(),
            "late": [asdict(alert) for alert in self._late.alerts],
            "latest": None if self._latest is None else _sample_state(self._latest),
            "window": self._window.state_dict(),
            "detector": self._detector.state_dict(),
            "evidence": self._evidence.state_dict(),
        }

    @alone
    def load_state_dict(self, state: Saved | Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        What no longer fits the model's parameters is left behind; what is not there, or is of another kind, afresh.
        """
        saved = Saved.of(state)
        for name in ("num_steps", "num_samples", "_num_publications", "_step", "_state_step", "_burst_until"):
            setattr(self, name, saved.take(name.removeprefix("_"), int, getattr(self, name), _is_step))
        self.thinning = saved.take("thinning", int, 1, lambda factor: factor >= 1)
        self._probe.strong.update(saved.take("strong", list[str], []))
        self._probe.repeated.update(saved.take("repeated", list[str], []))
        self._order = saved.take("order", tuple[str, ...], ())
        self._load_rows(saved)
        self._restored_updates = saved.find("updates", UpdateState)
        self._restored_clips = saved.find("clips", ClippersState)
        self._clip_window.load_state_dict(saved.part("clip_window"))
        alerts = saved.take_each("late", Alert)
        self._late = Report(tuple(alerts), has_news=bool(alerts))
        self._load_layers(saved)
        self._detector.load_state_dict(saved.part("detector"))
        self._evidence.load_state_dict(saved.part("evidence"))
        self.plan = None
        self._groups = []

    def _load_rows(self, saved: Saved) -> None:
        """The steps since the last copy; none of them if it is not known which they are."""
        rows = saved.find("rows", Tensor, lambda rows: (rows.ndim, rows.dtype) == (2, torch.float32))
        steps, known = saved.take("steps", list[int], []), saved.take("known", list[tuple[bool, Coverage]], [])
        if rows is not None and len(rows) == len(steps) == len(known):
            self._restored_rows, self._steps, self._known = rows, steps, known

    def _load_layers(self, saved: Saved) -> None:
        """What has one entry per layer; nothing of it if it is not known which they are."""
        self._restored_layers = layers = saved.find("layers", list[str])
        if layers is not None:
            self._latest = _sample_from(saved, len(layers))
            self._window.load_state_dict(saved.part("window"), 1 + len(layers))

    def _follow_parameters(self) -> None:
        """Make the plan at the first step, and anew whenever the optimizer's parameters have changed."""
        groups = [group["params"] for group in self._optimizer.param_groups]
        if _are_identical(groups, self._groups):
            return
        self._groups = [list(parameters) for parameters in groups]
        plan = self._make_plan()
        if not plan.parameters:
            self._lose_parameters()
            return
        self._order = self._order or tuple(self._probe.order)
        self._dtypes = frozenset(str(p.dtype).removeprefix("torch.") for p in plan.parameters)
        before = self._restored_layers
        if self.plan is not None:
            self._restored_clips = self._clippers.state_dict()
            self._late = self.flush(publish=False)
            replaced = _replaced(self.plan, plan)
            before = ["" if name in replaced else name for name in self._names()]  # no past of theirs is kept
            if self._probe.can_see:
                self._probe.watch(*_probed(self._model))
        self._set_plan(plan)
        if not self._device_window.restore(self._restored_rows):
            self._steps, self._known = [], []
        if self._restored_updates is not None and self._updates is not None and before == self._names():
            self._updates.load_state_dict(self._restored_updates)
        if self._restored_clips is not None:
            self._clippers.load_state_dict(self._restored_clips)
        self._restored_rows = self._restored_layers = self._restored_updates = self._restored_clips = None
        if before is not None:
            self._keep(before)

    def _lose_parameters(self) -> None:
        """Watch nothing while the optimizer has no parameters."""
        if self.plan is not None:
            self._restored_clips, self._restored_layers = self._clippers.state_dict(), self._names()
            self._late = self.flush(publish=False)
            self.plan = None

    def _follow_kinds(self, plan: Plan) -> None:
        """Have the plan made anew where a parameter has been cast, moved or given another shape, and is still itself.

        Between two looks at it, norms are taken the slower way that fits anything.
        """
        if self._kinds != _kinds(plan.parameters):
            self._groups = []

    def _keep(self, before: list[str]) -> None:
        """Keep what was measured in another order, or of other layers; what is known of those that are no more, forget.

        It must not be taken for other layers'.
        """
        names = self._names()
        if before == names:
            return
        self._window.rearrange([0, *(1 + before.index(name) if name in before else None for name in names)])
        self._latest, self._state_step = None, -STATE_EVERY
        known = set(names) & set(before)
        self._detector.time.keep(known)
        self._evidence.keep(known)

    def _make_plan(self) -> Plan:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        return make_plan(self._model, parameters, self._settings.include, self._settings.exclude)

    def _policies(self) -> list[ClipPolicy]:
        """Those of this optimizer."""
        names = (None, self.name or type(self._optimizer).__name__)
        return [policy for policy in self._settings.policies if policy.optimizer in names]

    def _names(self) -> list[str]:
        """The layers' names in the order in which they ran."""
        assert self.plan is not None
        return [self.plan.layers[place].name for place in self._places]

    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan
        self._places = running_order(plan.layers, self._order)
        self._arrangement: Arrangement | None = None
        self._layer_names = [layer.name for layer in plan.layers]
        self._kinds = _kinds(plan.parameters)
        self._shards = Shards(plan.parameters)
        self._clippers = Clippers(self._policies(), plan.parameters, plan.owners)
        self._intervenes = len(self._clippers) > 0 or self._settings.on_nonfinite != "keep"
        self._device_window = NormWindow(plan.parameters, self._shards, len(self._clippers) * NUM_FACTS)
        self._meter = ParameterMeter(plan.parameters, self._shards)
        owners = (plan.layer_index, len(plan.layers))
        make = functools.partial(UpdateMeter, plan.parameters, *owners, self._optimizer, self._shards)
        self._updates = self._optional.take("updates", None, make)
        if self._updates is None:
            self._optional.absent.add("moments")  # which it would have read

    def _follow_order(self) -> None:
        """Give layers that have run for the first time their place, and keep what was measured in the old order."""
        if len(self._probe.order) == self._num_ordered:
            return
        self._num_ordered = len(self._probe.order)
        if self.plan is None or set(self._probe.order) <= set(self._order):
            return
        before = self._names()
        self._order = (*self._probe.order, *(name for name in self._order if name not in self._probe.order))
        self._places, self._arrangement = running_order(self.plan.layers, self._order), None
        self._keep(before)

    def _drop_rows(self) -> None:
        self._device_window.clear()
        self._steps, self._known = [], []

    @property
    def _is_stateful(self) -> bool:
        """Whether the next full sample measures weights and zeros as well: a thorough one, or if none are known yet."""
        return self.is_thorough or self._latest is None

    def _take_state(self) -> dict[str, Tensor]:
        """What changes slowly, and is measured for publications and thorough samples alone."""
        self._state_step = self.num_steps
        unknown = self._unknown(self._device_window.norms.shape[1])
        return {
            "weights": self._optional.take("weights", unknown, self._meter.weight_norms),
            "nonzeros": self._optional.take("nonzeros", unknown, self._meter.nonzeros, self._local_gradients()),
        }

    def _local_gradients(self) -> list[Tensor | None]:
        """This rank's part of each gradient. All ranks must call this together, also one that leaves a figure out."""
        assert self.plan is not None
        gradients = [p.grad for p in self.plan.parameters]
        parts = iter(self._shards.local_parts([gradient for gradient in gradients if gradient is not None]))
        return [None if gradient is None else next(parts) for gradient in gradients]

    def _unknown(self, *shape: int) -> Tensor:
        """What stands in a copy for a figure that is left out."""
        return self._meter.missing.expand(shape)

    def _take_sample(self, loss_scale: Tensor | None) -> dict[str, Tensor]:
        thorough = self.is_thorough
        self.num_samples += 1
        self._ran = frozenset(self._probe.ran) - self._frozen()
        unknown = self._unknown(len(self._layer_names))
        outputs = {"outputs": self._optional.take("outputs", unknown, self._output_norms)}
        if not self._shards.is_spread:  # sequences may be longer on one rank than on another
            outputs.update(self._optional.take("sequences", {}, self._sequences))
        if loss_scale is not None:
            outputs = {name: torch.where(norms < 0, norms, norms / loss_scale) for name, norms in outputs.items()}
        return {**outputs, **self._check_up()} if thorough else outputs

    def _sequences(self) -> dict[str, Tensor]:
        """Those of layers on other devices are brought to where the rest is."""
        sequences, device = self._probe.sequences(), self._meter.missing.device
        if not sequences:
            return sequences
        at_once = need_not_wait(device)
        return {f"sequence {name}": norms.to(device, non_blocking=at_once) for name, norms in sequences.items()}

    def _output_norms(self) -> Tensor:
        return self._meter.stack([self._probe.norm(name) for name in self._layer_names]).float()

    def _check_up(self) -> dict[str, Tensor]:
        take, num_layers = self._optional.take, len(self._layer_names)
        sums, moments = self._unknown(NUM_SUMS, num_layers), self._unknown(NUM_MOMENT_SUMS, num_layers)
        if self._updates is not None:
            moments = take("moments", moments, self._updates.moments, self.num_steps)
            sums = take("updates", sums, self._updates.remember, self._device_window.norms[-1].isfinite().all())
        return {
            "updates": sums,
            "moments": moments,
            "output_nonzeros": take("output_nonzeros", self._unknown(num_layers), self._output_nonzeros),
            "inputs": take("inputs", self._unknown(num_layers, NUM_INPUT_FACTS), self._input_facts),
        }

    def _output_nonzeros(self) -> Tensor:
        return self._meter.stack([self._probe.nonzero_fraction(name) for name in self._layer_names])

    def _input_facts(self) -> Tensor:
        unknown = self._meter.missing.expand(NUM_INPUT_FACTS)
        inputs = [self._probe.inputs(name) for name in self._layer_names]
        device = unknown.device
        at_once = need_not_wait(device)
        present = [unknown if i is None else i.to(device, non_blocking=at_once) for i in inputs]
        return torch.stack(present or [unknown])[: len(inputs)]

    @property
    def _is_comparing(self) -> bool:
        """Whether the weights are to be compared with those before the last step."""
        return self._updates is not None and self._updates.is_waiting

    def _histogram_is_due(self) -> bool:
        every = self._settings.histogram_every
        return every > 0 and self._num_publications % every == 0

    def _take_histogram(self, plan: Plan, gradients: Sequence[Tensor | None], scale: Tensor | None) -> Tensor:
        owned = zip(gradients, plan.layer_index, self._shards.shares, strict=True)
        there = [(gradient, owner, share) for gradient, owner, share in owned if gradient is not None]
        owners, shares = [owner for _, owner, _ in there], [share for _, _, share in there]
        return log_histograms(
            [gradient for gradient, _, _ in there], owners, len(plan.layers), self._num_publications, scale, shares
        )

    def _send(self, tensors: dict[str, Tensor], publish: bool, is_urgent: bool = False) -> Report:
        if publish:
            self._num_publications += 1
        assert self.plan is not None
        rows = self._device_window
        label = _Label(
            self._step,
            tuple(self._steps),
            self.plan,
            tuple(self._known),
            self._lr(),
            self._dtypes,
            self._anatomy,
            self._ran,
            publish,
            self._is_scaled,
            self._is_scaled or self._settings.on_nonfinite == "skip",
        )
        tensors = {"norms": rows.norms, "facts": rows.facts, **tensors}
        kinds = _KINDS
        if self._intervenes:  # the norms are those of the whole already
            kinds = {**_KINDS, "norms": "mean"}
        if len(self._clippers):
            tensors["clips"] = rows.extra
        if len(self._clippers) and publish:
            tensors["clipped"] = self._clippers.clipped
        arrived = self._transfer.send(label, self._shards.reduce(tensors, kinds, self._optional.absent))
        self._drop_rows()
        if publish:
            self._clippers.forget()
        if is_urgent:
            arrived += self._transfer.receive()
        late, self._late = self._late, _NOTHING
        return _join(late, self._digest(arrived))

    def _digest(self, arrived: Iterable[tuple[_Label, dict[str, Tensor]]]) -> Report:
        report = _NOTHING
        for label, tensors in arrived:
            observation = self._arrange(label, tensors)
            alerts: tuple[Alert, ...] = ()
            if observation.steps:
                counted = observation.norms[observation.norms[:, 0].isfinite()] if label.skips else observation.norms
                self._window.add(counted)
                self._latest = observation.sample or self._refreshed(label, tensors)
                if observation.sample is not None:
                    is_same = label.plan is self.plan
                    names = self._layer_names if is_same else [layer.name for layer in label.plan.layers]
                    seen = dict(zip(names, tensors["outputs"].tolist(), strict=True))
                    self._optional.take("outputs", None, self._probe.trust, seen)
                if "clips" in tensors:
                    self._clip_window.add(tensors["clips"])
                findings = self._detector.update(observation, label.is_scaled, label.skips)
                self._optional.take("evidence", None, self._evidence.add, observation, self._detector.time.horizons)
                self._look_closer()
                alerts = tuple(self._explain(finding) for finding in findings)
            clipped = self._optional.take("clipped", None, self._clipped, label, tensors) if label.publish else None
            publications = self._publish(observation, clipped) if label.publish else ()
            change = _change(observation, tensors)
            report = _join(report, Report(alerts, publications, True, (observation,), change))
        return report

    def _explain(self, finding: Finding) -> Alert:
        alert = self._optional.take("causes", None, explain, finding, self._evidence, self.name)
        return explain_nothing(finding, self.name) if alert is None else alert

    def _look_closer(self) -> None:
        """Sample a few steps in a row if that would settle something; where ranks see different numbers, none does."""
        is_rested = self.num_steps >= self._burst_until + BURST_PAUSE
        if self._detector.is_suspicious and is_rested and self._shards.agrees:
            self._burst_until = self.num_steps + BURST_STEPS

    def _arrange(self, label: _Label, numbers: Mapping[str, Tensor]) -> Observation:
        """The figures of the layers, in the order in which these ran."""
        order = self._order_of(label.plan)
        facts = numbers["facts"].tolist()
        pairs = list(zip(facts, label.known, strict=True))
        histogram = numbers.get("histogram")
        return Observation(
            step=label.step,
            layers=order.layers,
            steps=label.steps,
            norms=order.columns(self._figures_of(label.plan).norms(numbers["norms"])),
            losses=tuple(loss if known else None for (loss, *_), (known, _) in pairs),
            bad_inputs=_bad_inputs(facts, [coverage for _, coverage in label.known]),
            lr=label.lr,
            dtypes=label.dtypes,
            anatomy=label.anatomy,
            sample=self._sample(label, numbers) if "outputs" in numbers else None,
            histogram=None if histogram is None or _is_unknown(histogram) else order.rows(histogram),
            publish=label.publish,
            optimizer=self.name,
            clips=numbers.get("clips"),
        )

    def _order_of(self, plan: Plan) -> Arrangement:
        if plan is not self.plan:
            return Arrangement(plan.layers, running_order(plan.layers, self._order))
        if self._arrangement is None:
            self._arrangement = Arrangement(plan.layers, self._places)
        return self._arrangement

    def _figures_of(self, plan: Plan) -> LayerFigures:
        if self._figures is None or self._figures[0] is not plan:
            sizes = [p.numel() for p in plan.parameters]
            self._figures = (plan, LayerFigures(plan.layer_index, len(plan.layers), sizes, plan.fan_in))
        return self._figures[1]

    def _frozen(self) -> frozenset[str]:
        """Layers that no gradient is asked for."""
        assert self.plan is not None
        if False not in [p.requires_grad for p in self.plan.parameters]:
            return frozenset()
        pairs = zip(self.plan.parameters, self.plan.layer_index, strict=True)
        trained = {i for p, i in pairs if p.requires_grad}
        return frozenset(layer.name for i, layer in enumerate(self.plan.layers) if i not in trained)

    def _lr(self) -> float | None:
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        return max((float(r) for r in rates if isinstance(r, (int, float))), default=None)

    def _sample(self, label: _Label, numbers: Mapping[str, Tensor]) -> Sample:
        order = self._order_of(label.plan)
        is_skipped = _is_skipped(label, numbers)
        weights, zeros = self._state(label, numbers)
        return Sample(
            step=label.step,
            output_grad_norm=order.rows(numbers["outputs"]) if not is_skipped else torch.full_like(weights, MISSING),
            weight_norm=weights,
            zero_fraction=zeros,
            ran=label.ran,
            sequences=tuple((n.removeprefix("sequence "), t) for n, t in numbers.items() if n.startswith("sequence ")),
            checkup=_checkup(numbers, self._figures_of(label.plan), order) if "updates" in numbers else None,
            is_skipped=is_skipped,
        )

    def _state(self, label: _Label, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weight norms and zero fractions: as measured with these numbers, otherwise as they were last known."""
        order, figures, latest = self._order_of(label.plan), self._figures_of(label.plan), self._latest
        known_weights = known_zeros = torch.full((len(order),), MISSING, dtype=torch.float32)
        if latest is not None and len(latest.weight_norm) == len(order):  # else the layers have changed since
            known_weights, known_zeros = latest.weight_norm, latest.zero_fraction
        if "weights" in numbers:
            take, unknown = self._optional.take, torch.full((len(order),), MISSING, dtype=torch.float32)
            if not _is_skipped(label, numbers):
                known_zeros = order.rows(take("nonzeros", unknown, figures.zero_fractions, numbers["nonzeros"]))
            return order.rows(take("weights", unknown, figures.weight_norms, numbers["weights"])), known_zeros
        return known_weights, known_zeros

    def _refreshed(self, label: _Label, numbers: Mapping[str, Tensor]) -> Sample | None:
        """The latest sample with what a publication has measured anew; None if the layers have changed since."""
        latest = self._latest
        if latest is None or len(latest.weight_norm) != len(self._order_of(label.plan)):
            return None
        if "weights" not in numbers:
            return latest
        weights, zeros = self._state(label, numbers)
        return replace(latest, weight_norm=weights, zero_fraction=zeros)

    def _clipped(self, label: _Label, numbers: Mapping[str, Tensor]) -> Tensor | None:
        """Share of the window's steps in which a gradient of each layer was clipped, in the order of the layers."""
        steps = max((clip.num_steps for clip in self._clip_window.summary()), default=0)
        if "clipped" not in numbers or not steps:
            return None
        counts = self._order_of(label.plan).rows(self._figures_of(label.plan).highest(numbers["clipped"]))
        return torch.where(counts < 0, counts, counts / steps)

    def _publish(self, observation: Observation, clipped: Tensor | None) -> tuple[Publication, ...]:
        window = self._window.summary()
        if window is None:
            return ()
        self._window.clear()
        clips = self._clip_window.summary()
        self._clip_window.clear()
        return (
            Publication(
                step=observation.step,
                optimizer=self.name,
                layers=observation.layers,
                window=window,
                sample=self._latest,
                histogram=observation.histogram,
                scores=self.scores,
                clips=clips,
                clipped_fraction=clipped,
                update_ratios=dict(self._evidence.update_ratio),
                horizons={name: steps for name, (steps, _, _) in self._evidence.horizons.items()},
            ),
        )


def _are_identical(groups: Sequence[Sequence[Tensor]], known: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the groups hold the very same parameters in the same places: 20 ns for each, and no tensor is compared.

    (``==`` between lists would take two scalars of one value for the same, and ask the device.)
    """
    if len(groups) != len(known):
        return False
    for now, before in zip(groups, known, strict=True):
        if len(now) != len(before) or not all(map(operator.is_, now, before)):
            return False
    return True


def _replaced(before: Plan, now: Plan) -> set[str]:
    """Names of layers that have not kept a single one of their parameters."""
    known = {id(parameter) for parameter in before.parameters}
    owners = zip(now.owners, now.parameters, strict=True)
    return set(now.owners) - {owner for owner, parameter in owners if id(parameter) in known}


def _kinds(parameters: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device, torch.Size]]:
    """What the meters of these parameters depend on besides their number."""
    return [(p.dtype, p.device, p.shape) for p in parameters]


def make_probe(model: nn.Module) -> Probe:
    """A probe on the layers of ``model`` that can be hooked: those that torch.compile has not taken over."""
    return Probe(*_probed(model))


def _probed(model: nn.Module) -> tuple[dict[str, nn.Module], list[str], list[str], list[str]]:
    """The layers to hook; the names of those that own a matrix; of these, those that are recurrent; and the fused."""
    layers = uncompiled_layers(model)
    matrices = [name for name, module in layers.items() if owns_matrix(module, own_parameters(module))]
    recurrent = [name for name in matrices if isinstance(layers[name], nn.RNNBase)]
    encoders = [module for module in modules(model) if isinstance(module, nn.TransformerEncoderLayer)]
    inside = {id(part) for encoder in encoders for part in modules(encoder)}
    return layers, matrices, recurrent, [name for name, module in layers.items() if id(module) in inside]


def _is_step(number: int) -> bool:
    return -STATE_EVERY <= number < 2**53


def _sample_state(sample: Sample) -> _SampleState:
    """What is published of a sample, as primitives and tensors of their own."""
    weights, zeros = sample.weight_norm.clone(), sample.zero_fraction.clone()
    return {
        "step": sample.step,
        "output_grad_norm": sample.output_grad_norm.clone(),
        "weight_norm": weights,
        "zero_fraction": zeros,
    }


def _sample_from(saved: Saved, num_layers: int) -> Sample | None:
    """The sample of :func:`_sample_state`; None if it is not of as many layers."""

    def is_whole(state: _SampleState) -> bool:
        tensors = [state.get(name) for name in _PUBLISHED]
        return all(isinstance(t, Tensor) and (t.shape, t.dtype) == ((num_layers,), torch.float32) for t in tensors)

    state = saved.find("latest", _SampleState, is_whole)
    if state is None:
        return None
    return Sample(state.get("step", 0), state["output_grad_norm"], state["weight_norm"], state["zero_fraction"])


def _change(observation: Observation, numbers: Mapping[str, Tensor]) -> Change | None:
    """What has become of the gradient since the backward pass; None if it is the same, or not known."""
    if "after_backward" not in numbers or not observation.steps:
        return None
    before, after = numbers["after_backward"].item(), observation.total_norms[-1]
    is_same = not (math.isfinite(before) and math.isfinite(after)) or abs(after - before) <= CHANGED * before
    return None if is_same else Change(observation.step, before, after)


def _bad_inputs(facts: Sequence[Sequence[float]], coverages: Iterable[Coverage]) -> tuple[bool | None, ...]:
    """Whether each batch held NaN or infinite values; None if none was found, but not all was looked at."""
    found: list[bool | None] = []
    for (_, *ends), coverage in zip(facts, coverages, strict=True):
        is_bad = coverage is not Coverage.NOTHING and not all(map(math.isfinite, ends))
        found.append(True if is_bad else False if coverage is Coverage.ALL else None)
    return tuple(found)


def _is_unknown(numbers: Tensor) -> bool:
    """Whether a figure was left out."""
    return numbers.numel() > 0 and numbers.flatten()[0].item() == MISSING


def _is_skipped(label: _Label, numbers: Mapping[str, Tensor]) -> bool:
    """Whether the step is not taken, because its gradient is not finite."""
    return label.skips and not bool(numbers["norms"][-1].isfinite().all())


def _checkup(numbers: Mapping[str, Tensor], figures: LayerFigures, order: Arrangement) -> Checkup:
    update_ratio, unchanged = update_figures(numbers["updates"])
    below_eps, signal = moment_figures(numbers["moments"])
    return Checkup(
        gain=order.rows(figures.gains(numbers["weights"])),
        update_ratio=order.rows(update_ratio),
        unchanged=order.rows(unchanged),
        below_eps=order.rows(below_eps),
        signal=order.rows(signal),
        output_zeros=order.rows(complement(numbers["output_nonzeros"])),
        inputs=order.rows(numbers["inputs"]),
    )


def skip_step(optimizer: Optimizer, is_finite: Tensor) -> None:
    """Keep an optimizer from its next step if the gradient is not finite: weights and state stay as they are.

    Fused optimizers are told on the device, by the flag with which loss scalers do it; for the others the host must
    read one number.

    Args:
        optimizer: About to step.
        is_finite: Whether the gradient is finite, shape ``()``, bool.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    elif not bool(is_finite):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _join(first: Report, second: Report) -> Report:
    return Report(
        first.alerts + second.alerts,
        first.publications + second.publications,
        first.has_news or second.has_news,
        first.observations + second.observations,
        first.change or second.change,
    )
