"""What depends on an optimizer's list of parameters: one object, made anew as a whole when the list changes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradwatch.core.clip import ClipPolicy
from lightning_gradwatch.core.clip.clippers import NUM_FACTS, Clippers, ClippersState
from lightning_gradwatch.core.engines import Access
from lightning_gradwatch.core.figures import Arrangement, LayerFigures
from lightning_gradwatch.core.layers import ParameterLayout, running_order
from lightning_gradwatch.core.measure import NormWindow, ParameterMeter
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.saved import Saved
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.shards import Shards
from lightning_gradwatch.core.spikes import SpikeGuard
from lightning_gradwatch.core.updates import UpdateMeter, UpdateState


@dataclass(frozen=True)
class Past:
    """What is kept from before these parameters were there, in a checkpoint or in instruments that are gone.

    Attributes:
        layers: Names of the layers in the order in which they ran; None if that is not known.
        clips: What the clipping policies remember.
        updates: The weights before the last step that was sampled.
        spikes: Norms and losses of the last steps, and how many were left out.
        rows: Norms, losses and clippings of the steps since the last copy, as in ``NormWindow.rows``.
    """

    layers: list[str] | None = None
    clips: ClippersState | None = None
    updates: UpdateState | None = None
    spikes: dict[str, Tensor] | None = None
    rows: Tensor | None = None

    @classmethod
    def of(cls, saved: Saved) -> Past:
        """The parts of a checkpoint that are of use and can be read."""
        return cls(
            layers=saved.find("layers", list[str]),
            clips=saved.find("clips", ClippersState),
            updates=saved.find("updates", UpdateState),
            spikes=saved.find("spikes", dict[str, Tensor]),
            rows=saved.find("rows", Tensor, lambda rows: (rows.ndim, rows.dtype) == (2, torch.float32)),
        )


class Instruments:
    """What measures and clips the gradients of one list of parameters.

    Args:
        layout: The parameters, sorted into layers; at least one.
        access: Reaches what the optimizer remembers.
        policies: What to clip by.
        settings: What to do with a step whose gradient is not finite, and with one that stands out.
        ran: Names of layers in the order in which they ran, as far as they have.
        optional: Leaves out the size of the updates if it cannot be measured.

    Attributes:
        layout: The parameters.
        layer_names: Names of the layers as registered.
        order: The order in which the layers ran.
        dtypes: The parameters' dtypes, such as ``float16``.
        shards: How they are spread over the ranks.
        window: Norms of the steps since the last copy to the host.
        meter: Measures weights and zeros.
        updates: Measures how far the optimizer moves the weights; None if it cannot be measured.
        clippers: The policies at work.
        skips: Whether steps whose gradient is not finite are skipped.
        spikes: Tells which steps stand out, and are left out; None if all are kept.
        intervenes: Whether gradients are clipped, or steps may be skipped or reported at once.
        figures: Numbers per parameter become figures per layer.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        access: Access,
        policies: Sequence[ClipPolicy],
        settings: Settings,
        ran: Sequence[str],
        optional: OptionalFigures,
    ) -> None:
        parameters = layout.parameters
        self.layout = layout
        self.layer_names = [layer.name for layer in layout.layers]
        self.order = Arrangement(layout.layers, running_order(layout.layers, ran))
        self.dtypes = frozenset(str(p.dtype).removeprefix("torch.") for p in parameters)
        self._kinds = _kinds(parameters)
        self.shards = Shards(parameters, layout.cuts)
        self.clippers = Clippers(policies, parameters, layout.owners, layout.cuts)
        self.skips = settings.on_nonfinite == "skip"
        self.spikes = SpikeGuard(parameters, self.shards.num_ranks == 1) if settings.on_spike == "skip" else None
        self.intervenes = len(self.clippers) > 0 or settings.on_nonfinite != "keep" or self.spikes is not None
        self.window = NormWindow(parameters, self.shards, len(self.clippers) * NUM_FACTS)
        self.meter = ParameterMeter(parameters, self.shards)
        owners = (layout.layer_index, len(layout.layers))
        make = functools.partial(UpdateMeter, parameters, *owners, access, self.shards)
        self.updates: UpdateMeter | None = optional.take("updates", None, make)
        if self.updates is None:
            optional.absent.add("moments")  # which it would have read
        self.figures = LayerFigures(*owners, [cut.shape.numel() for cut in layout.cuts], layout.fan_in)

    @property
    def names(self) -> list[str]:
        """The layers' names in the order in which they ran."""
        return [layer.name for layer in self.order.layers]

    def arrange(self, ran: Sequence[str]) -> None:
        """Take layers to have run in another order than so far."""
        self.order = Arrangement(self.layout.layers, running_order(self.layout.layers, ran))

    @property
    def still_fit(self) -> bool:
        """Whether no parameter has been cast, moved or given another shape, and is still itself.

        Between two looks at it, norms are taken the slower way that fits anything.
        """
        # tuples by the thousand, in a list, would call the garbage collector
        return all(
            p.dtype is dtype and p.shape == shape and p.device == device
            for p, (dtype, device, shape) in zip(self.layout.parameters, self._kinds, strict=True)
        )

    @property
    def frozen(self) -> frozenset[str]:
        """Layers that no gradient is asked for."""
        parameters = self.layout.parameters
        if False not in [p.requires_grad for p in parameters]:
            return frozenset()
        pairs = zip(parameters, self.layout.layer_index, strict=True)
        trained = {i for p, i in pairs if p.requires_grad}
        return frozenset(name for i, name in enumerate(self.layer_names) if i not in trained)

    def local_gradients(self) -> list[Tensor | None]:
        """This rank's part of each gradient. All ranks must call this together, also one that leaves a figure out."""
        pairs = [(p, gradient) for p in self.layout.parameters if (gradient := p.grad) is not None]
        parts = iter(self.shards.local_parts([gradient for _, gradient in pairs], [p for p, _ in pairs]))
        return [None if p.grad is None else next(parts) for p in self.layout.parameters]

    def unknown(self, *shape: int) -> Tensor:
        """What stands in a copy for a figure that is left out."""
        return self.meter.missing.expand(shape)

    def interventions(self, in_full: bool) -> dict[str, Tensor]:
        """What clipping and skipping have done, to be carried home; with what concerns no single step if in full."""
        done: dict[str, Tensor] = {}
        if len(self.clippers):
            done["clips"] = self.window.extra
        if in_full and len(self.clippers):
            done["clipped"] = self.clippers.clipped
        if in_full and self.spikes is not None:
            done["spikes"] = self.spikes.memory["num_skipped"]
        return done

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Leave what clipping and skipping remember as it is, whatever they do meanwhile. No host sync."""
        with self.clippers.without_memory(), nullcontext() if self.spikes is None else self.spikes.without_memory():
            yield

    def past(self) -> Past:
        """What outlives these instruments. What the ranks hold parts of is not in it."""
        is_whole = not self.shards.is_spread
        return Past(
            layers=self.names,
            clips=self.clippers.state_dict(),
            updates=self.updates.state_dict() if self.updates is not None and is_whole else None,
            spikes=None if self.spikes is None else self.spikes.state_dict(),
            rows=self.window.rows().cpu().clone() if is_whole else None,
        )

    def restore(self, past: Past) -> bool:
        """Take over what fits these parameters; whether the rows did."""
        if past.updates is not None and self.updates is not None and past.layers == self.names:
            self.updates.load_state_dict(past.updates)
        if past.clips is not None:
            self.clippers.load_state_dict(past.clips)
        if past.spikes is not None and self.spikes is not None:
            self.spikes.load_state_dict(past.spikes)
        return self.window.restore(past.rows)


def _kinds(parameters: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device, torch.Size]]:
    """What the meters of these parameters depend on besides their number."""
    return [(p.dtype, p.device, p.shape) for p in parameters]


def are_identical(groups: Sequence[Sequence[Tensor]], known: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the groups hold the very same parameters in the same places: 20 ns for each, and no tensor is compared.

    (``==`` between lists would take two scalars of one value for the same, and ask the device.)
    """
    if len(groups) != len(known):
        return False
    for now, before in zip(groups, known, strict=True):
        if len(now) != len(before) or not all(map(operator.is_, now, before)):
            return False
    return True


def replaced(before: ParameterLayout, now: ParameterLayout) -> Collection[str]:
    """Names of layers that have not kept a single one of their parameters."""
    known = {id(parameter) for parameter in before.parameters}
    owners = zip(now.owners, now.parameters, strict=True)
    return set(now.owners) - {owner for owner, parameter in owners if id(parameter) in known}
