"""Reads off the device what not every step needs: samples, weights, histograms. No host sync here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.core.attribution.graph import Operation
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.histogram import log_histograms
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.norms import norms
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.own import OwnMeter
from lightning_gradwatch.core.pending import Pending
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.records import NUM_BINS, SEQUENCE
from lightning_gradwatch.core.sampling import Sampling
from lightning_gradwatch.core.shards import Kind
from lightning_gradwatch.core.updates import NUM_MOMENT_SUMS, NUM_SUMS

NUM_INPUT_FACTS = 7
_REDUCTIONS: dict[str, Kind] = {
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
    "spikes": "mean",
    "after_backward": "mean",
    "resigned": "sum",
}
"""What is carried from the device to the host, and how ranks that hold parts of it add it up."""


class Reader:
    """Reads what samples and publications need; what cannot be read is left out from then on.

    Args:
        probe: Has seen the gradients at the layers' outputs.
        own: Measures quantities of the user's own.
        optional: Leaves out what fails.
        sampling: Tells how thorough a sample is, and counts it.
        pending: Is told what the sample is of.
        histogram_every: Steps between two histograms at least; 0 for none.

    Attributes:
        reductions: How ranks that hold parts of what is carried to the host add it up, by name.
        noted: Total norm after the last backward pass, shape ``()``; None where nobody needs it.
        operations: Whose norms ``"attribution"`` are, in what ``causes`` read last.
    """

    def __init__(
        self,
        probe: Probe,
        own: OwnMeter,
        optional: OptionalFigures,
        sampling: Sampling,
        pending: Pending,
        histogram_every: int,
    ) -> None:
        self._probe = probe
        self._own = own
        self._take = optional.take
        self._sampling = sampling
        self._pending = pending
        self._histogram_every = histogram_every
        self.reductions: dict[str, Kind] = {**_REDUCTIONS, **dict.fromkeys(own.names, "mean")}
        self.noted: Tensor | None = None
        self.operations: tuple[Operation, ...] = ()

    def note_backward(self, instruments: Instruments) -> None:
        """Keep the total norm as it is after a backward pass, to be compared with that at the step."""
        present = [p.grad for p in instruments.layout.parameters if p.grad is not None]
        if present:
            self.noted = torch.linalg.vector_norm(instruments.meter.stack(norms(present)))

    def after_backward(self, loss_scale: Tensor | None) -> dict[str, Tensor]:
        """What ``note_backward`` has kept, shape ``(1,)``, unscaled; nothing where it was not called."""
        if self.noted is None:
            return {}
        return {"after_backward": (self.noted if loss_scale is None else self.noted / loss_scale).view(1)}

    def due(
        self,
        instruments: Instruments,
        is_sampled: bool,
        is_first: bool,
        loss_scale: Tensor | None,
        scale: Tensor | None,
    ) -> dict[str, Tensor]:
        """What is to be carried home with the norms; a sample, which is counted, as thorough as it is to be.

        Args:
            instruments: Of the present parameters.
            is_sampled: Whether there is to be a sample.
            is_first: Whether the host knows nothing of the weights yet.
            loss_scale: Factor with which the loss was multiplied, shape ``()``; None without a loss scaler.
            scale: The same if it is still in the gradients, otherwise None.
        """
        sample = self.after_backward(loss_scale)
        if not is_sampled:
            return sample
        sampling, pending = self._sampling, self._pending
        is_thorough = sampling.is_thorough
        seeks_causes, num_layers = is_thorough and sampling.seeks_causes, len(instruments.layer_names)
        if is_thorough or is_first:
            sample.update(self.state(instruments, scale))
        if is_thorough and sampling.takes_histogram(self._histogram_every, num_layers):
            sample.update(self.histogram(instruments, sampling.num_histograms, scale))
        sampling.num_samples += 1
        pending.ran = frozenset(self._probe.order.ran) - instruments.frozen
        sample.update(self.sample(instruments, loss_scale))
        if is_thorough:
            sample.update(self.thorough(instruments, sampling.num_steps))
            pending.spare = self._probe.order.spare
        if seeks_causes:
            sample.update(self.causes(instruments))
            pending.operations = self.operations
        return sample

    def state(self, instruments: Instruments, scale: Tensor | None) -> dict[str, Tensor]:
        """What is measured for thorough samples alone; ``scale`` is still in the gradients."""
        meter, unknown = instruments.meter, instruments.unknown(len(instruments.layout.parameters))
        return {
            "weights": self._take("weights", unknown, meter.weight_norms),
            "nonzeros": self._take("nonzeros", unknown, meter.nonzeros, instruments.local_gradients()),
            **self._own.measure(instruments, scale),
        }

    def sample(self, instruments: Instruments, loss_scale: Tensor | None) -> dict[str, Tensor]:
        """Gradient norms at the layers' outputs, and along time, unscaled."""
        unknown = instruments.meter.missing.expand(len(instruments.layer_names))
        outputs = {"outputs": self._take("outputs", unknown, self._output_norms, instruments)}
        if not instruments.shards.is_spread:  # sequences may be longer on one rank than on another
            outputs.update(self._take("sequences", {}, self._sequences, instruments))
        if loss_scale is not None:
            outputs = {name: torch.where(norms < 0, norms, norms / loss_scale) for name, norms in outputs.items()}
        return outputs

    def _output_norms(self, instruments: Instruments) -> Tensor:
        return instruments.meter.stack([self._probe.account.norm(name) for name in instruments.layer_names]).float()

    def _sequences(self, instruments: Instruments) -> dict[str, Tensor]:
        """Those of layers on other devices are brought to where the rest is."""
        sequences, device = self._probe.sequences(), instruments.meter.missing.device
        if not sequences:
            return sequences
        at_once = need_not_wait(device)
        return {f"{SEQUENCE}{name}": norms.to(device, non_blocking=at_once) for name, norms in sequences.items()}

    def thorough(self, instruments: Instruments, num_steps: int) -> dict[str, Tensor]:
        """What a thorough sample sees besides: updates, Adam's moments, zeros at outputs."""
        take, num_layers = self._take, len(instruments.layer_names)
        sums, moments = instruments.unknown(NUM_SUMS, num_layers), instruments.unknown(NUM_MOMENT_SUMS, num_layers)
        updates = instruments.updates
        if updates is not None:
            moments = take("moments", moments, updates.moments, num_steps)
            sums = take("updates", sums, updates.remember, instruments.window.norms[-1].isfinite().all())
        zeros = instruments.unknown(num_layers)
        return {
            "updates": sums,
            "moments": moments,
            "output_nonzeros": take("output_nonzeros", zeros, self._output_nonzeros, instruments),
        }

    def causes(self, instruments: Instruments) -> dict[str, Tensor]:
        """What tells causes apart, where it is asked for: inputs, and the gradient's way operation by operation."""
        facts = instruments.unknown(len(instruments.layer_names), NUM_INPUT_FACTS)
        return {
            "inputs": self._take("inputs", facts, self._input_facts, instruments),
            **self._take("attribution", {}, self._attribution, instruments),
        }

    def _attribution(self, instruments: Instruments) -> dict[str, Tensor]:
        """Norms on the way back, of this rank's own batch; nothing where none of the ranks has whole gradients."""
        if instruments.shards.is_spread:
            return {}
        layers, layout = instruments.layer_names, instruments.layout
        owners = zip(layout.parameters, layout.layer_index, strict=True)
        names = {id(parameter): layers[owner] for parameter, owner in owners if owner < len(layers)}
        traced = self._probe.account.tracer.take(names, instruments.meter.missing.device)
        if traced is None:
            return {}
        self.operations, norms = traced
        return {"attribution": norms}

    def _output_nonzeros(self, instruments: Instruments) -> Tensor:
        return instruments.meter.stack([self._probe.account.nonzero_fraction(name) for name in instruments.layer_names])

    def _input_facts(self, instruments: Instruments) -> Tensor:
        unknown = instruments.unknown(NUM_INPUT_FACTS)
        inputs = [self._probe.inputs(name) for name in instruments.layer_names]
        device = unknown.device
        at_once = need_not_wait(device)
        present = [unknown if i is None else i.to(device, non_blocking=at_once) for i in inputs]
        return torch.stack(present or [unknown])[: len(inputs)]

    def histogram(self, instruments: Instruments, turn: int, scale: Tensor | None) -> dict[str, Tensor]:
        """Counts of log10|g| per layer; which elements are counted depends on ``turn``."""
        unknown = instruments.unknown(len(instruments.layer_names), NUM_BINS + 2)
        gradients = instruments.local_gradients()  # with all ranks, also where histograms are left out
        return {"histogram": self._take("histogram", unknown, _histogram, instruments, gradients, turn, scale)}


def _histogram(instruments: Instruments, gradients: Sequence[Tensor | None], turn: int, scale: Tensor | None) -> Tensor:
    owned = zip(gradients, instruments.layout.layer_index, instruments.shards.shares, strict=True)
    there = [(gradient, owner, share) for gradient, owner, share in owned if gradient is not None]
    if not there:  # other ranks hold them
        return instruments.unknown(len(instruments.layer_names), NUM_BINS + 2)
    owners, shares = [owner for _, owner, _ in there], [share for _, _, share in there]
    return log_histograms(
        [gradient for gradient, _, _ in there], owners, len(instruments.layer_names), turn, scale, shares
    )
