"""One optimizer's watch: a gradient walks through the rooms of ``core`` once, from the backward pass to an alert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.detect import Detector
from lightning_gradwatch.core.diagnose import explain
from lightning_gradwatch.core.histogram import log_histograms
from lightning_gradwatch.core.layers import Plan, make_plan, owns_matrix, reorder, uncompiled_layers
from lightning_gradwatch.core.measure import LayerMeter, NormWindow
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.records import Alert, Layer, Observation, Publication, Sample
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.transfer import Transfer
from lightning_gradwatch.core.window import PublicationWindow


@dataclass(frozen=True)
class Settings:
    """What to watch and how often.

    Attributes:
        schedule: When full samples are taken.
        histogram_every: Every how many publications there is a histogram; 0 for never.
        include: Globs over the names of the layers to report; empty for all.
        exclude: Globs over the names of the layers not to report.
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
    """

    schedule: Schedule = field(default_factory=Schedule)
    histogram_every: int = 10
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    vanishing_threshold: float = 0.5


@dataclass(frozen=True)
class Report:
    """What a watcher has to say after a step: mostly nothing.

    Attributes:
        alerts: Alerts that opened or ended.
        publications: What is to be written to the loggers.
    """

    alerts: tuple[Alert, ...] = ()
    publications: tuple[Publication, ...] = ()


@dataclass(frozen=True)
class _Label:
    """What the host has to know about a copy that is under way."""

    step: int
    steps: tuple[int, ...]
    layers: tuple[Layer, ...]
    publish: bool
    is_scaled: bool


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
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        probe: Probe | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.num_steps = 0
        self._model = model
        self._optimizer = optimizer
        self._settings = settings or Settings()
        self._owns_probe = probe is None
        self._probe = make_probe(model) if probe is None else probe
        self._detector = Detector(self._settings.vanishing_threshold)
        self._window = PublicationWindow()
        self._transfer: Transfer[_Label] = Transfer()
        self._latest: Sample | None = None
        self._num_publications = 0
        self._order: tuple[str, ...] = ()
        self._steps: list[int] = []
        self._step = 0
        self._is_scaled = False
        self._late = _NOTHING
        self._restored_rows: Tensor | None = None
        self._group_sizes: list[int] = []
        self.plan: Plan | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        return self._detector.scores

    @property
    def profile(self) -> dict[str, float]:
        """The latest depth profile: gradient norms at layer outputs (or of weights), the input end first."""
        return dict(zip(self._detector.profile.layers, self._detector.profile.norms, strict=True))

    def is_due(self, steps_ahead: int = 0) -> bool:
        """Whether a full sample is due within the coming step and the ``steps_ahead`` steps after it.

        The very first step counts as one: it tells in which order the layers run.
        """
        first = self.num_steps
        return first == 0 or any(self._settings.schedule.is_due(n) for n in range(first, first + steps_ahead + 1))

    def arm(self) -> None:
        """Call before the forward pass: puts the probe in place if the coming step is sampled."""
        if self.is_due():
            self._probe.attach()

    def observe(
        self,
        step: int | None = None,
        loss: Tensor | None = None,
        *,
        loss_scale: Tensor | None = None,
        gradients_scaled: bool = False,
        publish: bool = False,
    ) -> Report:
        """Call between the backward pass and the optimizer's step: takes in the gradients as they are now.

        Args:
            step: Where the step stands on the x-axis; None to count the steps from 0.
            loss: The loss that was differentiated, one element.
            loss_scale: Factor of a loss scaler with which ``loss`` was multiplied before the backward pass, shape
                ``()``; None without a scaler.
            gradients_scaled: Whether the parameters' gradients still carry that factor.
            publish: Whether the loggers are to be written at this step.

        Returns:
            Alerts and publications; empty on a step that is neither sampled nor published, which costs no host sync.
        """
        self._follow_parameters()
        if self.plan is None or not self._device_window.push(loss, loss_scale, gradients_scaled):
            return self.flush(publish) if publish else _NOTHING
        self._step = self.num_steps if step is None else step
        self._steps.append(self._step)
        self._is_scaled = loss_scale is not None
        is_due = self._settings.schedule.is_due(self.num_steps) or self._device_window.is_full
        self.num_steps += 1
        tensors = self._take_sample(self.plan, loss_scale) if is_due else {}
        if publish and self._histogram_is_due():
            tensors["histogram"] = self._take_histogram(self.plan, loss_scale if gradients_scaled else None)
        if self._owns_probe:
            self._probe.detach()
        return self._send(tensors, publish) if is_due or publish else _NOTHING

    def flush(self, publish: bool = True) -> Report:
        """Bring home what is still on the device, wait for it, and publish it if there is something new."""
        if self.plan is None:
            return _NOTHING
        sent = self._send({}, publish)
        return _join(sent, self._digest(self._transfer.receive()))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives that :meth:`load_state_dict` takes back; loads with ``weights_only=True``."""
        self._late = _join(self._late, self._digest(self._transfer.receive()))
        return {
            "num_steps": self.num_steps,
            "num_publications": self._num_publications,
            "order": list(self._order),
            "step": self._step,
            "steps": list(self._steps),
            "rows": None if self.plan is None else self._device_window.rows().cpu().clone(),
            "window": self._window.state_dict(),
            "detector": self._detector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; what no longer fits the model's parameters is left behind."""
        self.num_steps = state["num_steps"]
        self._num_publications = state["num_publications"]
        self._order = tuple(state["order"])
        self._step = state["step"]
        self._steps = list(state["steps"])
        self._restored_rows = state["rows"]
        self._window.load_state_dict(state["window"])
        self._detector.load_state_dict(state["detector"])
        self.plan = None
        self._group_sizes = []

    def _follow_parameters(self) -> None:
        """Make the plan at the first step, and anew whenever the optimizer's parameters have changed."""
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        if sizes == self._group_sizes:
            return
        self._group_sizes = sizes
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        plan = make_plan(self._model, parameters, self._settings.include, self._settings.exclude)
        if not plan.parameters:
            return
        self._order = self._order or tuple(self._probe.order)
        self.plan = reorder(plan, self._order)
        self._meter = LayerMeter(self.plan.parameters, self.plan.layer_index, len(self.plan.layers))
        self._device_window = NormWindow(self.plan.parameters)
        self._steps = self._steps if self._device_window.restore(self._restored_rows) else []
        self._restored_rows = None

    def _take_sample(self, plan: Plan, loss_scale: Tensor | None) -> dict[str, Tensor]:
        output_norms = self._meter.stack([self._probe.norm(layer.name) for layer in plan.layers])
        return {
            "output_grad_norm": output_norms if loss_scale is None else output_norms / loss_scale,
            "weight_norm": self._meter.weight_norms(),
            "zero_fraction": self._meter.zero_fractions(),
        }

    def _histogram_is_due(self) -> bool:
        every = self._settings.histogram_every
        return every > 0 and self._num_publications % every == 0

    def _take_histogram(self, plan: Plan, scale: Tensor | None) -> Tensor:
        pairs = [(p.grad, i) for p, i in zip(plan.parameters, plan.layer_index, strict=True) if p.grad is not None]
        gradients, owners = [g for g, _ in pairs], [i for _, i in pairs]
        return log_histograms(gradients, owners, len(plan.layers), self._num_publications, scale)

    def _send(self, tensors: dict[str, Tensor], publish: bool) -> Report:
        if publish:
            self._num_publications += 1
        assert self.plan is not None
        rows = self._device_window.rows()
        label = _Label(self._step, tuple(self._steps), self.plan.layers, publish, self._is_scaled)
        norms = self._meter.gradient_norms(rows[:, :-1])
        arrived = self._transfer.send(label, {"norms": norms, "losses": rows[:, -1], **tensors})
        self._device_window.clear()
        self._steps = []
        late, self._late = self._late, _NOTHING
        return _join(late, self._digest(arrived))

    def _digest(self, arrived: Iterable[tuple[_Label, dict[str, Tensor]]]) -> Report:
        report = _NOTHING
        for label, tensors in arrived:
            observation = _observation(label, tensors)
            alerts: tuple[Alert, ...] = ()
            if observation.steps:
                counted = (
                    observation.norms[observation.norms[:, 0].isfinite()] if label.is_scaled else observation.norms
                )
                self._window.add(counted)
                self._latest = observation.sample or self._fitting(self._latest, observation)
                findings = self._detector.update(observation, label.is_scaled)
                alerts = tuple(explain(finding, self.name) for finding in findings)
            publications = self._publish(observation) if label.publish else ()
            report = _join(report, Report(alerts, publications))
        return report

    @staticmethod
    def _fitting(sample: Sample | None, observation: Observation) -> Sample | None:
        """An earlier sample, unless the layers have changed since."""
        return sample if sample is not None and len(sample.weight_norm) == len(observation.layers) else None

    def _publish(self, observation: Observation) -> tuple[Publication, ...]:
        window = self._window.summary()
        if window is None:
            return ()
        self._window.clear()
        step, layers = observation.step, observation.layers
        return (
            Publication(step, self.name, layers, window, self._latest, observation.histogram, self._detector.scores),
        )


def make_probe(model: nn.Module) -> Probe:
    """A probe on the layers of ``model`` that can be hooked: those that torch.compile has not taken over."""
    layers = uncompiled_layers(model)
    matrices = [name for name, module in layers.items() if owns_matrix(module, module.parameters(recurse=False))]
    return Probe(layers, matrices)


def _observation(label: _Label, tensors: Mapping[str, Tensor]) -> Observation:
    is_sample = "weight_norm" in tensors
    names = ("output_grad_norm", "weight_norm", "zero_fraction")
    return Observation(
        step=label.step,
        layers=label.layers,
        steps=label.steps,
        norms=tensors["norms"],
        losses=tensors["losses"],
        sample=Sample(label.step, *(tensors[name] for name in names)) if is_sample else None,
        histogram=tensors.get("histogram"),
        publish=label.publish,
    )


def _join(first: Report, second: Report) -> Report:
    return Report(first.alerts + second.alerts, first.publications + second.publications)
