"""Instruments that always fit: made anew when an optimizer's parameters change, put in order when layers first run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lightning_gradwatch.core.clip import ClipPolicy
from lightning_gradwatch.core.clip.clippers import Clippers
from lightning_gradwatch.core.engines import Access
from lightning_gradwatch.core.instruments import Instruments, Past, are_identical, replaced
from lightning_gradwatch.core.layers import ParameterLayout, make_layout
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import hookable
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.shards import Shards

Names = Sequence[str]


class Fitting:
    """Follows the parameters of one optimizer and the order in which the model's layers run.

    Args:
        model: The model, whose module paths name the layers.
        access: Reaches the gradients of the optimizer.
        name: Name of the optimizer if there are several.
        settings: Which layers, and what to clip by.
        probe: Sees in which order the layers run; follows changes of the model.
        optional: Leaves out what cannot be measured.

    Attributes:
        instruments: Those of the present parameters; None before the first step, and while there are no parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        access: Access,
        name: str,
        settings: Settings,
        probe: Probe,
        optional: OptionalFigures,
    ) -> None:
        self.instruments: Instruments | None = None
        self._model = model
        self._access = access
        self._name = name
        self._settings = settings
        self._probe = probe
        self._optional = optional
        self._groups: list[list[Tensor]] = []
        self._past = Past()
        self._ran: tuple[str, ...] = ()
        self._num_ran = 0

    @property
    def is_spread(self) -> bool:
        """Whether ranks hold parts of the parameters; also before there are instruments."""
        if self.instruments is not None:
            return self.instruments.shards.is_spread
        layout = self._make_layout()
        return bool(layout.parameters) and Shards(layout.parameters, layout.cuts).is_spread

    @property
    def may_have_changed(self) -> bool:
        """Whether the optimizer's parameters are not the very same as at the last look."""
        return not are_identical(self._access.groups, self._groups)

    @property
    def is_stale(self) -> bool:
        """The same, or layers have run that had not run before: asked at every step, so in one go."""
        is_new = len(self._probe.order.names) != self._num_ran
        return is_new or not are_identical(self._access.groups, self._groups)

    def look_closely(self) -> None:
        """Have instruments made anew where a parameter was cast, moved or given another shape, and is still itself."""
        if self.instruments is not None and not self.instruments.still_fit:
            self._groups = []

    def refit(self, bring_home: Callable[[], None]) -> tuple[Names, bool]:
        """Make instruments for the parameters as they are now.

        Args:
            bring_home: Called while the old instruments are still there, if what they have measured is to be lost.

        Returns:
            Names of the layers, as they ran, of which something may be known from before; empty names stand for layers
            that are others by now. And whether the rows of a checkpoint are back in the window.
        """
        self._groups = [list(group) for group in self._access.groups]
        layout = self._make_layout()
        if self.instruments is not None:
            self._past = _outlives(self.instruments, layout)
            bring_home()
            self.instruments = None
            if layout.parameters and self._probe.can_see:
                self._probe.watch(*hookable(self._model))
        if not layout.parameters:
            return (), True
        self._ran = self._ran or tuple(self._probe.order.names)
        past, self._past = self._past, Past()
        self.instruments = Instruments(
            layout, self._access, self._policies(), self._settings, self._ran, self._optional
        )
        has_rows = self.instruments.restore(past)
        return self.instruments.names if past.layers is None else past.layers, has_rows

    def rearrange(self) -> Names:
        """Give layers that have run for the first time their place; the names in the order so far."""
        self._num_ran = len(self._probe.order.names)
        if self.instruments is None:
            return ()
        before = self.instruments.names
        if not set(self._probe.order.names) <= set(self._ran):
            self._ran = (*self._probe.order.names, *(name for name in self._ran if name not in self._probe.order.names))
            self.instruments.arrange(self._ran)
        return before

    def check_clipping(self) -> None:
        """Refuse policies that cannot be right on these parameters.

        Raises:
            ValueError: If one of them cannot work on parameters that are spread over ranks.
        """
        layout = self._make_layout() if self._policies() else None
        if layout is not None and layout.parameters:
            Clippers(self._policies(), layout.parameters, layout.owners, layout.cuts)

    def _make_layout(self) -> ParameterLayout:
        parameters = [p for group in self._access.groups for p in group]
        include, exclude = self._settings.include, self._settings.exclude
        return make_layout(self._model, parameters, include, exclude, self._access.cuts())

    def _policies(self) -> list[ClipPolicy]:
        """Those of this optimizer."""
        names = (None, self._name or type(self._access.optimizer).__name__)
        return [policy for policy in self._settings.policies if policy.optimizer in names]

    def state_dict(self) -> State:
        """Tensors and primitives that ``load_state_dict`` takes back."""
        past = self._past if self.instruments is None else self.instruments.past()
        return {
            "order": list(self._ran),
            "layers": past.layers,
            "clips": past.clips,
            "updates": past.updates,
            "spikes": past.spikes,
            "rows": past.rows,
        }

    def load_state_dict(self, saved: Saved, num_rows: int) -> Names | None:
        """Go on where ``state_dict`` was taken, with so many rows or none; the names of the layers, if known."""
        past = Past.of(saved)
        if past.rows is not None and len(past.rows) != num_rows:
            past = replace(past, rows=None)
        self._ran = saved.take("order", tuple[str, ...], ())
        self._past, self.instruments, self._groups = past, None, []
        return past.layers


def _outlives(instruments: Instruments, layout: ParameterLayout) -> Past:
    """What is kept of instruments; nothing of layers that have not kept a single parameter."""
    past, new = instruments.past(), replaced(instruments.layout, layout)
    layers = ["" if name in new else name for name in past.layers or ()]
    return Past(layers=layers, clips=past.clips, spikes=past.spikes)
