"""Numbers per parameter, arrived on the host, become one observation of layers in the order in which they ran."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from lightning_gradwatch.core.attribution.graph import Operation
from lightning_gradwatch.core.attribution.way import Attribution
from lightning_gradwatch.core.figures import complement, moment_figures, update_figures
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.own import OwnMeter
from lightning_gradwatch.core.records import MISSING, SEQUENCE, Architecture, Coverage, Observation
from lightning_gradwatch.core.reports import Change
from lightning_gradwatch.core.samples import Sample, ThoroughSample
from lightning_gradwatch.core.saved import Saved, State

CHANGED = 0.01
"""By which part a total norm must differ after the backward pass and at the step to tell of somebody's hand."""

Numbers = Mapping[str, Tensor]
_PUBLISHED = ("output_grad_norm", "weight_norm", "zero_fraction")
"""What a publication shows of the latest sample."""


@dataclass(frozen=True)
class Label:
    """What the host has to know about a copy that is under way.

    Attributes:
        step: The last step in it, on the x-axis of the loggers.
        steps: Every step in it.
        known: For each of them whether its loss is known, and how much of its batch was looked at.
        instruments: By which it was measured.
        lr: Largest learning rate of the optimizer; None if it is no plain number.
        architecture: What the network is made of; None until it is known.
        ran: Names of the layers that ran at the last sampled step, and that a gradient is asked for.
        spare: Names of those that trained layers fed and whose output nobody had kept, at the latest thorough sample.
        operations: Whose norms ``"attribution"`` are.
        publish: Whether the loggers are to be written.
        is_scaled: Whether a loss scaler is at work.
        skips: Whether steps whose gradient is not finite are skipped, by whomever.
    """

    step: int
    steps: tuple[int, ...]
    known: tuple[tuple[bool, Coverage], ...]
    instruments: Instruments
    lr: float | None
    architecture: Architecture | None
    ran: frozenset[str]
    spare: frozenset[str]
    operations: tuple[Operation, ...]
    publish: bool
    is_scaled: bool
    skips: bool


class _SampleState(TypedDict, total=False):
    """What a checkpoint holds of the latest sample."""

    step: int
    output_grad_norm: Tensor
    weight_norm: Tensor
    zero_fraction: Tensor


class Assembly:
    """Makes observations, and fills in from the latest sample what was not measured anew.

    Args:
        optimizer: Name of the optimizer; ``""`` if there is only one.
        own: Checks quantities of the user's own.
        optional: Leaves out what cannot be made.

    Attributes:
        latest: The latest sample; None before the first one.
    """

    def __init__(self, optimizer: str, own: OwnMeter, optional: OptionalFigures) -> None:
        self._optimizer = optimizer
        self._own = own
        self._optional = optional
        self.latest: Sample | None = None

    def observation(self, label: Label, numbers: Numbers) -> Observation:
        """The figures of the layers, in the order in which these ran."""
        instruments, order = label.instruments, label.instruments.order
        facts = numbers["facts"].tolist()
        histogram = numbers.get("histogram")
        return Observation(
            step=label.step,
            layers=order.layers,
            steps=label.steps,
            norms=order.columns(instruments.figures.norms(numbers["norms"])),
            losses=tuple(loss if known else None for (loss, *_), (known, _) in zip(facts, label.known, strict=True)),
            bad_inputs=_bad_inputs(facts, [coverage for _, coverage in label.known]),
            lr=label.lr,
            dtypes=instruments.dtypes,
            architecture=label.architecture,
            sample=self._sample(label, numbers) if "outputs" in numbers else None,
            histogram=None if histogram is None or _is_unknown(histogram) else order.rows(histogram),
            publish=label.publish,
            optimizer=self._optimizer,
            clips=numbers.get("clips"),
            is_scaled=label.is_scaled,
        )

    def remember(self, observation: Observation) -> None:
        """Keep the newest sample, unless the layers have changed since."""
        if observation.sample is not None:
            self.latest = observation.sample
        elif self.latest is not None and len(self.latest.weight_norm) != len(observation.layers):
            self.latest = None

    def _sample(self, label: Label, numbers: Numbers) -> Sample:
        order, is_skipped = label.instruments.order, _is_skipped(label, numbers)
        weights, zeros = self._state(label, numbers, is_skipped)
        return Sample(
            step=label.step,
            output_grad_norm=order.rows(numbers["outputs"]) if not is_skipped else torch.full_like(weights, MISSING),
            weight_norm=weights,
            zero_fraction=zeros,
            ran=label.ran,
            spare=label.spare,
            sequences=tuple((n.removeprefix(SEQUENCE), t) for n, t in numbers.items() if n.startswith(SEQUENCE)),
            thorough=_thorough(label, numbers) if "updates" in numbers else None,
            is_skipped=is_skipped,
            extra=self._extra(label, numbers, is_skipped) if self._own.names else {},
        )

    def _extra(self, label: Label, numbers: Numbers, is_skipped: bool) -> Mapping[str, Tensor]:
        """Quantities of the user's own: as measured with these numbers, otherwise as they were last known."""
        order, latest = label.instruments.order, self.latest
        if "weights" in numbers and not is_skipped:
            return {name: order.rows(values) for name, values in self._own.checked(numbers).items()}
        return {} if latest is None or len(latest.weight_norm) != len(order.layers) else latest.extra

    def _state(self, label: Label, numbers: Numbers, is_skipped: bool) -> tuple[Tensor, Tensor]:
        """Weight norms and zero fractions: as measured with these numbers, otherwise as they were last known."""
        figures, order, latest = label.instruments.figures, label.instruments.order, self.latest
        unknown = torch.full((len(order.layers),), MISSING, dtype=torch.float32)
        weights = zeros = unknown
        if latest is not None and len(latest.weight_norm) == len(order.layers):  # else the layers have changed since
            weights, zeros = latest.weight_norm, latest.zero_fraction
        if "weights" in numbers:
            take = self._optional.take
            if not is_skipped:
                zeros = order.rows(take("nonzeros", unknown, figures.zero_fractions, numbers["nonzeros"]))
            weights = order.rows(take("weights", unknown, figures.weight_norms, numbers["weights"]))
        return weights, zeros

    def state_dict(self) -> State:
        """What is published of the latest sample, as primitives and tensors of their own."""
        if self.latest is None:
            return {"latest": None}
        tensors = {name: getattr(self.latest, name).clone() for name in _PUBLISHED}
        return {"latest": {"step": self.latest.step, **tensors}}

    def load_state_dict(self, saved: Saved, layers: Sequence[str] | None) -> None:
        """Go on where ``state_dict`` was taken, if it is known with which layers."""
        if layers is None:
            return

        def is_whole(state: _SampleState) -> bool:
            tensors = [state.get(name) for name in _PUBLISHED]
            kind = ((len(layers),), torch.float32)
            return all(isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == kind for tensor in tensors)

        state = saved.find("latest", _SampleState, is_whole)
        if state is None:
            self.latest = None
        else:
            tensors = (state["output_grad_norm"], state["weight_norm"], state["zero_fraction"])
            self.latest = Sample(state.get("step", 0), *tensors)


def clipped_counts(label: Label, numbers: Numbers) -> Tensor | None:
    """In how many steps a gradient of each layer was clipped, in the order of the layers; None without clipping."""
    if "clipped" not in numbers:
        return None
    return label.instruments.order.rows(label.instruments.figures.highest(numbers["clipped"]))


def change(observation: Observation, numbers: Numbers) -> Change | None:
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


def _is_skipped(label: Label, numbers: Numbers) -> bool:
    """Whether the step is not taken, because its gradient is not finite."""
    return label.skips and not bool(numbers["norms"][-1].isfinite().all())


def _thorough(label: Label, numbers: Numbers) -> ThoroughSample:
    figures, order = label.instruments.figures, label.instruments.order
    inputs, norms = numbers.get("inputs"), numbers.get("attribution")
    update_ratio, unchanged = update_figures(numbers["updates"])
    below_eps, signal = moment_figures(numbers["moments"])
    return ThoroughSample(
        gain=order.rows(figures.gains(numbers["weights"])),
        update_ratio=order.rows(update_ratio),
        unchanged=order.rows(unchanged),
        below_eps=order.rows(below_eps),
        signal=order.rows(signal),
        output_zeros=order.rows(complement(numbers["output_nonzeros"])),
        inputs=None if inputs is None else order.rows(inputs),
        attribution=None if norms is None else Attribution(label.operations, norms.tolist()),
    )
