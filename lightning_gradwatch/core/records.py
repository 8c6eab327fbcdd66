"""The records that travel between the rooms: frozen, without behaviour, importable without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gradwatch.core.samples import Sample


MISSING = -1.0
"""Stands for "no gradient" or "not observed" in a tensor of numbers that are never negative."""
SEQUENCE = "sequence "
"""Before the name of a layer, in what goes to the host: its gradient norms along time steps."""
SMALL_SHARE = 0.01
"""Share of the squared gradient norm, which is that of what a small step of gradient descent takes off the loss, below
which a falling loss says nothing of a layer."""
LOWEST, HIGHEST, BINS_PER_DECADE = -45, 39, 4
"""The range of histograms of log10|g|, in decades (that of float32, denormals included), and their resolution."""
NUM_BINS = (HIGHEST - LOWEST) * BINS_PER_DECADE
CLEAR_TIME = 10.0
"""By how many percent a step must be longer or shorter, in a trial of a second, to be no accident."""

AlertKind = Literal[
    "vanishing",
    "vanishing_through_time",
    "exploding",
    "nonfinite",
    "dead",
    "detached",
    "stalled",
    "underflow",
]
AlertLevel = Literal["notice", "alert"]
Cause = Literal[
    "saturating_activation",
    "small_init",
    "large_init",
    "input_scale",
    "no_skip_or_norm",
    "normalisation_order",
    "recurrence",
    "dead_relu",
    "detached",
    "saturated_output",
    "target_scale",
    "half_precision",
    "adam_eps",
    "learning_rate",
    "weight_decay",
    "cliff",
    "bad_data",
    "unstable_op",
    "unknown",
]


class Coverage(IntEnum):
    """How much of a batch was looked at: of the floating-point numbers that it holds, wherever they are."""

    NOTHING = 0
    PART = 1
    ALL = 2


class BatchCheck(NamedTuple):
    """Whether a batch holds NaN or infinite values.

    Attributes:
        ends: The least and the greatest element of the tensors that were looked at, shape ``()`` each, on their device:
            both are finite if all elements are. None if there was no such tensor.
        coverage: How much was looked at.
        is_bad: Whether a number on the host was not finite.
    """

    ends: tuple[Tensor, Tensor] | None
    coverage: Coverage
    is_bad: bool = False


@dataclass(frozen=True)
class Layer:
    """A module that directly owns parameters, or shares a matrix with one before it.

    Attributes:
        name: Module path without wrapper prefixes such as ``_orig_mod.``; ``"(model)"`` for the model itself.
        parameters: Names of the parameters it owns and that are watched, in the order of ``named_parameters()``. None
            where all belong to layers before it: then there are figures of its outputs alone.
        shared_with: Further names under which its parameters are registered (tied weights); of those that belong to a
            layer before it the name there.
        has_matrix: Whether it takes part in the depth profile: it has a parameter with two or more dimensions, of its
            own or shared, and is not a normalisation layer.
        shares_matrix: Whether every such parameter belongs to a layer before it, and the figures of it are there.
        num_elements: Elements of the parameters it owns and that are watched, wherever their parts lie; 0 for unknown.
    """

    name: str
    parameters: tuple[str, ...]
    shared_with: tuple[str, ...] = ()
    has_matrix: bool = False
    shares_matrix: bool = False
    num_elements: int = 0

    @property
    def owns_matrix(self) -> bool:
        """Whether figures of its parameters are those of a matrix."""
        return self.has_matrix and not self.shares_matrix


@dataclass(frozen=True)
class Alert:
    """One incident in a training run, from the step at which it opened to the step at which it ended.

    Attributes:
        kind: What is wrong: one of the table of kinds, or the kind of a rule of the user.
        level: ``"notice"`` (worth knowing) or ``"alert"`` (act).
        step: Step at which it opened, on the x-axis of the loggers. A notice that rises to an alert keeps it: the
            trouble began then, and kind, step and optimizer are how an incident is known again.
        until_step: Last step at which it held; None while it is open.
        layer: Name of the layer that shows it most; ``""`` if it concerns the run as a whole.
        value: The measured value at opening, in the unit that the table of kinds names.
        threshold: The value at which this kind opens, in the same unit.
        message: What is wrong, why, and what to try, in plain sentences.
        cause: Why, as one of a fixed list of causes; ``"unknown"`` where the measurements do not decide.
        evidence: The measurement that names the cause, with its figure.
        remedies: What to try, the cheapest first; what was tried and helped, the best first.
        optimizer: Name of the optimizer that owns the layers; ``""`` if there is only one.
        prescription: What was tried on a copy of the model, as ``Prescription.as_dict`` has it; None where nothing was.
        attribution: Where on its way back the gradient is lost: ``layer``, ``lost`` (decades), ``shares`` by kind of
            operation, ``stages`` from the loss on. None where that was not measured.
        birth: Where NaN or infinite values were born, as ``Birth.as_dict`` has it; None where that is not known.
        summary: What is wrong, in a sentence, for a place that shows kind, step, evidence and remedies by themselves;
            ``""`` in the logs of older versions.
        title: The headline of a rule of the user; ``""`` for the kinds of the table, which have theirs there.
    """

    kind: str
    level: AlertLevel
    step: int
    until_step: int | None
    layer: str
    value: float
    threshold: float
    message: str
    cause: Cause = "unknown"
    evidence: str = ""
    remedies: tuple[str, ...] = ()
    optimizer: str = ""
    prescription: Mapping[str, Any] | None = field(default=None, hash=False)
    summary: str = ""
    attribution: Mapping[str, Any] | None = field(default=None, hash=False)
    birth: Mapping[str, Any] | None = field(default=None, hash=False)
    title: str = ""

    def __str__(self) -> str:
        """What, Why, Try, in lines; ``repr`` has every field, for debugging."""
        from lightning_gradwatch.core.telling import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """What, Why, Try, as a notebook shows it."""
        from lightning_gradwatch.core.telling import as_html

        return as_html(self)

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        """The lines of ``str``, as IPython shows them, also in a list of alerts."""
        printer.text(str(self))


def to_try(remedies: Iterable[str]) -> str:
    """The end of a message; nothing where there is nothing to try."""
    told = "; ".join(remedies)
    return f" Try: {told}." if told else ""


@dataclass(frozen=True)
class Finding:
    """What the detector saw, before it is explained: an [`Alert`][lightning_gradwatch.Alert] without its words.

    Attributes:
        kind: What is wrong: one of the table of kinds, or the kind of a rule of the user.
        level: How bad it is.
        step: Step at which it opened.
        until_step: Last step at which it held; None while it is open.
        layers: The layers that show it, the most telling first; for ``vanishing`` the starving layer at the input end
            and the layer at the loss end.
        value: The measured value, in the unit of the kind.
        threshold: The value at which this kind opens.
    """

    kind: str
    level: AlertLevel
    step: int
    until_step: int | None
    layers: tuple[str, ...]
    value: float
    threshold: float


@dataclass(frozen=True)
class Architecture:
    """What the network is made of.

    Attributes:
        activations: How many activations of each kind there are: ``sigmoid``, ``tanh``, ``relu``, ``smooth``.
        norms: Number of normalisation layers.
        skips: Number of additions or concatenations of two computed tensors.
    """

    activations: tuple[tuple[str, int], ...]
    norms: int
    skips: int


@dataclass(frozen=True)
class Window:
    """Statistics of every observed step since the last publication. Column 0 is the total norm, then one per layer.

    Attributes:
        num_steps: Number of observed steps.
        last: Norms at the last step. Shape ``(1 + layers,)``, unit: loss per unit of parameter, ``-1`` for no gradient.
        min: Smallest finite norm. Same shape and unit; NaN if there was none.
        median: Median of the finite norms (of at most the last 1,024 steps). Same shape and unit.
        max: Largest finite norm. Same shape and unit.
    """

    num_steps: int
    last: Tensor
    min: Tensor
    median: Tensor
    max: Tensor


@dataclass(frozen=True)
class Clip:
    """What one clipping policy did since the last publication. Norms are unscaled, in loss per unit of parameter.

    Attributes:
        threshold: Total norm (or value) above which the last step was clipped; NaN for policies that clip each tensor
            or unit by itself.
        coefficient: Norm after by norm before clipping at the last step; 1 if nothing was clipped.
        clipped_norm: Norm after clipping at the last step, over the parameters that the policy is for.
        num_steps: Number of steps.
        num_clipped: Number of those in which something was clipped.
    """

    threshold: float
    coefficient: float
    clipped_norm: float
    num_steps: int
    num_clipped: int


@dataclass(frozen=True)
class Observation:
    """Everything that one copy brought from the device to the host.

    Attributes:
        step: Last step it covers, on the x-axis of the loggers.
        layers: The watched layers, in the order in which they ran.
        steps: Every observed step since the previous observation.
        norms: Gradient norms of these steps, total first. Shape ``(len(steps), 1 + layers)``, float32, ``-1`` for no
            gradient.
        losses: Loss of these steps, None where it is not known.
        bad_inputs: Whether the batch of each step held NaN or inf; None where not all of it was looked at and
            none was found.
        lr: Largest learning rate of the optimizer at ``step``; None if it is no plain number.
        dtypes: The dtypes of the layers' parameters, such as ``float16``.
        architecture: What the network is made of; None until it is known.
        sample: The sample, if one was taken at ``step``.
        histogram: Counts of log10|g| per layer at ``step``, then of exact zeros and of non-finite values, from a
            bounded number of elements. Shape ``(layers, bins + 2)``; None when it was not due.
        publish: Whether the loggers are to be written at ``step``.
        optimizer: Name of the optimizer; ``""`` if there is only one.
        clips: Threshold, coefficient and norm after clipping of each policy at each of ``steps``, policy by policy.
            Shape ``(len(steps), 3 * policies)``; None without clipping.
        is_scaled: Whether a loss scaler is at work, which skips steps whose gradient is not finite.
    """

    step: int
    layers: tuple[Layer, ...]
    steps: tuple[int, ...]
    norms: Tensor
    losses: tuple[float | None, ...]
    bad_inputs: tuple[bool | None, ...]
    lr: float | None
    dtypes: frozenset[str]
    architecture: Architecture | None
    sample: Sample | None
    histogram: Tensor | None
    publish: bool
    optimizer: str = ""
    clips: Tensor | None = None
    is_scaled: bool = False

    @cached_property
    def total_norms(self) -> list[float]:
        """Total norm of each step."""
        return self.norms[:, 0].tolist()

    @cached_property
    def last_norms(self) -> list[float]:
        """Norm of each layer at the last step."""
        return self.norms[-1, 1:].tolist()


@dataclass(frozen=True)
class Publication:
    """What is written to every logger at one step, for one optimizer.

    Attributes:
        step: The step, on the x-axis of the loggers.
        optimizer: Name of the optimizer; ``""`` if there is only one.
        layers: The watched layers, in the order in which they ran.
        window: Norms of every step since the last publication.
        scores: Run-level numbers of the detector by their short name, such as ``vanishing``.
        clips: What each clipping policy did; empty without clipping.
        overhead_percent: What watching costs the host, in percent of the steps' own time; None if that is not known.
    """

    step: int
    optimizer: str
    layers: tuple[Layer, ...]
    window: Window
    scores: dict[str, float]
    clips: tuple[Clip, ...] = ()
    overhead_percent: float | None = None
