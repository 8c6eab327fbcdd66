"""One optimizer's watch: a gradient walks through the rooms of ``core`` once, from the backward pass to an alert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.alike import SharedDoubts
from lightning_gradwatch.core.alone import alone
from lightning_gradwatch.core.architecture import Surveyor
from lightning_gradwatch.core.attending import OpenStep, gradients_if_possible, push_anyhow
from lightning_gradwatch.core.digest import Digest
from lightning_gradwatch.core.engines import access_to, reaching
from lightning_gradwatch.core.fitting import Fitting, Names
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.intervene import intervene
from lightning_gradwatch.core.judge import Judge
from lightning_gradwatch.core.optional import Omission, OptionalFigures
from lightning_gradwatch.core.own import OwnMeter
from lightning_gradwatch.core.pending import Pending
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.probing import make_probe
from lightning_gradwatch.core.reader import Reader
from lightning_gradwatch.core.records import MISSING, Alert, BatchCheck
from lightning_gradwatch.core.reports import NOTHING, Report, join
from lightning_gradwatch.core.samples import Sample
from lightning_gradwatch.core.sampling import Sampling
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.core.sending import Sender
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.skipping import Skipper

__all__ = ["Report", "Settings", "Watcher"]

MAX_COMPARISONS = 5
"""Samples at which the gradient after the backward pass is compared with that at the step."""


class Watcher:
    """Watches the gradients of one optimizer.

    In a hand-written loop: ``arm`` before the forward pass, ``observe`` between the backward pass and the
    optimizer's step, ``flush`` at the end.

    Args:
        model: The model, whose module paths name the layers.
        optimizer: The optimizer whose parameters are watched.
        settings: What to watch and how often.
        probe: A probe to share between several watchers of one model, attached and detached by the caller; None for one
            of its own.
        name: Name of the optimizer if there are several.
        tell: Takes what has failed and is left out from then on; None for a warning.

    Attributes:
        sampling: Counts steps and samples, and tells when the next one is due.
        surveyor: Reads what the network is made of off the graphs of the first losses.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        probe: Probe | None = None,
        name: str = "",
        tell: Callable[[Omission], None] | None = None,
    ) -> None:
        self.name = name
        self._access = access_to(optimizer)
        self._settings = settings or Settings()
        self._skipper = Skipper(self._access)
        self._owns_probe = probe is None
        self._probe = make_probe(model) if probe is None else probe
        self._optional = OptionalFigures() if tell is None else OptionalFigures(tell)
        self.sampling = Sampling(self._settings.schedule)
        self.surveyor = Surveyor(model, self._optional)
        self._fitting = Fitting(model, self._access, name, self._settings, self._probe, self._optional)
        own = OwnMeter(self._settings.quantities, self._optional)
        self._pending = Pending()
        self._reader = Reader(
            self._probe, own, self._optional, self.sampling, self._pending, self._settings.histogram_every
        )
        judge = Judge(self._settings.vanishing_threshold, name, self._optional, self._settings.rules)
        doubts = SharedDoubts() if self._settings.are_complete else None
        self._digest = Digest(name, judge, self._probe, self.sampling, own, self._optional, doubts)
        about = (self.surveyor, self._pending, self._reader, self._digest, self._optional)
        self._sender = Sender(optimizer, *about)
        self._open_step = OpenStep()

    @property
    def instruments(self) -> Instruments | None:
        """What measures the parameters as they are now; None until the first step."""
        return self._fitting.instruments

    @property
    def is_spread(self) -> bool:
        """Whether ranks hold parts of what is watched; also before the first step."""
        return self._fitting.is_spread

    @property
    def latest(self) -> Sample | None:
        """The latest sample; None before the first one."""
        return self._digest.assembly.latest

    @property
    def scores(self) -> dict[str, float]:
        """Run-level numbers by their short name."""
        return self._digest.judge.scores

    @property
    def vanishing(self) -> float:
        """The vanishing score alone."""
        return self._digest.judge.vanishing

    @property
    def profile(self) -> dict[str, float]:
        """The latest depth profile: gradient norms at layer outputs (or of weights), the input end first."""
        return self._digest.judge.profile

    def holds(self, alert: Alert) -> bool:
        """Whether an alert of this optimizer is still open, and will end when it is over."""
        return self._digest.judge.holds(alert)

    def is_due(self, steps_ahead: int = 0) -> bool:
        """Whether a sample is due within the coming step, as at the very first, and ``steps_ahead`` after it."""
        return self.sampling.is_due(steps_ahead)

    def arm(self) -> None:
        """Call before the forward pass: puts the probe in place if the coming step is sampled."""
        if self.sampling.is_due():
            self._probe.attach(self.sampling.is_thorough, self.sampling.seeks_causes)

    def inspect(self, loss: Tensor) -> None:
        """Read what the network is made of off the graph of a loss; only the first few calls do anything."""
        self.surveyor.inspect(loss)

    @alone
    def note_backward(self) -> None:
        """Call after a backward pass where somebody may change the gradients before the step.

        On the first few sampled steps alone, a total norm is kept, which ``observe`` compares with its own.
        """
        sampling, instruments = self.sampling, self._fitting.instruments
        if instruments is None or sampling.num_samples >= MAX_COMPARISONS or instruments.shards.is_spread:
            return
        if sampling.falls_on(sampling.num_steps):
            self._reader.note_backward(instruments)

    @alone
    @reaching
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
            inputs: ``check_batch`` of the batch, to tell bad data from bad weights.
            publish: Whether the loggers are to be written at this step.

        Returns:
            Alerts and publications; empty on a step that is neither sampled nor published, which costs no host sync.
        """
        sampling, probe, open_step = self.sampling, self._probe, self._open_step
        known = self._fitting.instruments
        if known is None or known.shards.is_spread:
            open_step.begin(sampling, known)
        is_due = sampling.is_overdue or sampling.falls_on(sampling.num_steps)
        # 1. instruments that fit the parameters as they are now
        instruments = self._fit(is_due or publish)
        # 2. the norms of this step, in a row on the device
        if instruments is None or not instruments.window.push(loss, loss_scale, gradients_scaled, inputs):
            open_step.is_open = False
            return self.flush(publish) if publish else NOTHING
        if loss is not None and loss.grad_fn is not None:
            self.surveyor.inspect(loss)
        at = sampling.num_steps if step is None else step
        self._pending.add(at, instruments.window.known, is_scaled=loss_scale is not None)
        # 3. what is due besides
        sampling.is_overdue = is_due and probe.can_see and not probe.is_attached
        is_sampled = is_due and not sampling.is_overdue
        if instruments.updates is not None and instruments.updates.is_waiting:
            self._optional.take("updates", None, instruments.updates.compare)
        scale = loss_scale if gradients_scaled else None
        due: dict[str, Tensor] = {}
        if is_sampled or publish:
            is_first = self._digest.assembly.latest is None
            due = self._reader.due(instruments, is_sampled, is_first, loss_scale, scale)
        self._reader.noted = None
        sampling.num_steps += 1
        probe.account.is_read = True  # an optimizer is about to step: the next backward pass opens a new account
        if self._owns_probe:
            probe.detach()
        # 4. clip or skip, once everything has been measured
        is_urgent = instruments.intervenes and self._intervene(instruments, scale)
        # 5. one copy to the host
        report = NOTHING
        if is_sampled or publish or is_urgent or instruments.window.is_due(sampling.steps_to_home):
            report = self._sender.send(instruments, due, publish, is_urgent)
        open_step.is_open = False
        return report

    @alone
    def attend(
        self, *, loss_scale: Tensor | None = None, gradients_scaled: bool = False, publish: bool = False
    ) -> None:
        """Call instead of ``observe`` after ``resign``, also for the step that failed, until all ranks know.

        Does what the ranks do together, without measuring anything, and clips if that is still possible.

        Raises:
            ResignedError: If all ranks know now.
        """
        sampling = self.sampling
        if self._open_step.is_open:
            self._open_step.begin_again(sampling, self._fitting.instruments, self._pending)
        is_due = sampling.is_overdue or sampling.falls_on(sampling.num_steps)
        instruments = self._fit(is_due or publish)
        with gradients_if_possible(self._access) as are_reached:
            if instruments is None or not push_anyhow(instruments.window, are_reached, loss_scale, gradients_scaled):
                self._sender.late = self.flush(publish) if publish else NOTHING
                return
            self._pending.add(sampling.num_steps, instruments.window.known, is_scaled=loss_scale is not None)
            scale = loss_scale if gradients_scaled else None
            is_first = self._digest.assembly.latest is None
            due = self._reader.due(instruments, is_due, is_first, None, None) if is_due or publish else {}
            sampling.num_steps, sampling.is_overdue = sampling.num_steps + 1, False
            is_urgent = instruments.intervenes and self._intervene(instruments, scale)
            if is_due or publish or is_urgent or instruments.window.is_due(sampling.steps_to_home):
                self._sender.send(instruments, due, publish, is_urgent)
            instruments.shards.num_to_skip = 0

    def check_clipping(self) -> None:
        """Refuse policies that cannot be right on this optimizer's parameters.

        Raises:
            ValueError: If one of them cannot work on parameters that are spread over ranks.
        """
        self._fitting.check_clipping()

    @alone
    def clip_only(self, *, loss_scale: Tensor | None = None, gradients_scaled: bool = False) -> bool:
        """Call instead of ``observe`` to clip or skip and do nothing else, as after a failure that ended the watch.

        Returns:
            Whether the gradient is not finite where that is to be raised, or the step left out.

        Raises:
            RuntimeError: If the norms of the whole are not known, on all ranks alike.
        """
        if self._fitting.may_have_changed:
            self._refit()
        instruments, is_fatal = self._fitting.instruments, False
        self._pending.is_scaled = loss_scale is not None
        if instruments is None:
            return False
        window = instruments.window
        with gradients_if_possible(self._access) as are_reached:
            if push_anyhow(window, are_reached, loss_scale, gradients_scaled):
                is_fatal = instruments.intervenes and self._intervene(
                    instruments, loss_scale if gradients_scaled else None
                )
                is_blank = window.is_blank or (self.is_spread and bool((window.norms[-1] == MISSING).all()))
                self._sender.drop_rows(instruments)
                if is_blank:
                    raise RuntimeError("the norms of the gradients cannot be measured")
        return is_fatal

    def resign(self) -> bool:
        """Do only what other ranks need from now on, until all know of a failure; whether they need anything."""
        self._sender.late, self._digest.has_resigned = NOTHING, self.is_spread
        self._optional.leave_out_all()
        return self._digest.has_resigned

    @alone
    @reaching
    def intervene_again(self, *, loss_scale: Tensor | None = None, gradients_scaled: bool = False) -> bool:
        """Call instead of ``observe`` at a further evaluation of the loss within the step observed last.

        Clips or skips as there. Nothing is counted, and no policy remembers it: it is one step.

        Returns:
            Whether the gradient is not finite where that is to be raised, or the step left out.
        """
        instruments = self._fitting.instruments
        if instruments is None or not instruments.intervenes:
            return False
        if not instruments.window.push(None, loss_scale, gradients_scaled):
            return False
        with instruments.without_memory():
            is_fatal = self._intervene(instruments, loss_scale if gradients_scaled else None)
        instruments.window.drop_last()
        return is_fatal

    def close(self) -> None:
        """Call at the end: leaves nothing on the optimizer, and nothing on the model."""
        if self._owns_probe:
            self._probe.close()
        self._access.close()
        if "skip" in (self._settings.on_nonfinite, self._settings.on_spike):
            self._skipper.leave()

    @alone
    def flush(self, publish: bool = True, together: bool = True) -> Report:
        """Bring home what is still on the device, wait for it, and publish it if there is something new.

        Args:
            publish: Whether the loggers are to be written.
            together: Whether all ranks do this now. Otherwise steps whose numbers are still spread over the ranks are
                left behind: after an exception on one of them, waiting for the others would be waiting for ever.
        """
        instruments = self._fitting.instruments
        if instruments is None:
            return NOTHING
        if not together and self.is_spread:
            self._sender.drop_rows(instruments)
            return self._sender.receive()
        sent = self._sender.send(instruments, {}, publish)
        return join(sent, self._sender.receive())

    @alone
    def state_dict(self) -> State:
        """Tensors and primitives that ``load_state_dict`` takes back; loads with ``weights_only=True``.

        Steps since the last sample whose numbers are still spread over ranks are not in it.
        """
        self._sender.late = join(self._sender.late, self._sender.receive())
        return {
            **self.sampling.state_dict(),
            **self._fitting.state_dict(),
            **self._digest.state_dict(),
            **self._pending.state_dict(is_whole=self.instruments is None or not self.is_spread),
            "strong": sorted(self._probe.strong),
            "repeated": sorted(self._probe.repeated),
            "late": [asdict(alert) for alert in self._sender.late.alerts],
        }

    @alone
    def load_state_dict(self, state: Saved | Mapping[str, object]) -> None:
        """Go on where ``state_dict`` was taken.

        What no longer fits the model's parameters is left behind; what is not there, or is of another kind, afresh.
        """
        saved = Saved.of(state)
        self.sampling.load_state_dict(saved)
        self._pending.load_state_dict(saved)
        layers = self._fitting.load_state_dict(saved, num_rows=len(self._pending.steps))
        self._digest.load_state_dict(saved, layers)
        self._probe.strong.update(saved.take("strong", list[str], []))
        self._probe.repeated.update(saved.take("repeated", list[str], []))
        alerts = saved.take_each("late", Alert)
        self._sender.late = Report(tuple(alerts), has_news=bool(alerts))

    def _fit(self, looks_closely: bool) -> Instruments | None:
        """Instruments for the parameters as they are now; None while the optimizer has none that can be measured."""
        fitting = self._fitting
        known = fitting.instruments
        if known is not None and (looks_closely or (known.updates is not None and known.updates.is_waiting)):
            fitting.look_closely()
        if fitting.is_stale:
            if fitting.may_have_changed:
                self._refit()
            self._keep(fitting.rearrange())
        return fitting.instruments

    def _refit(self) -> None:
        before, has_rows = self._fitting.refit(self._bring_home)
        if not has_rows:
            self._pending.drop()
        self._keep(before)

    def _bring_home(self) -> None:
        self._sender.late = self.flush(publish=False)

    def _keep(self, before: Names) -> None:
        """Keep what was measured of the layers, which ran in this order so far."""
        instruments = self._fitting.instruments
        if instruments is not None and instruments.names != before:
            self._digest.keep(instruments.names, before)

    def _intervene(self, instruments: Instruments, scale: Tensor | None) -> bool:
        """Clip or skip the step that was pushed last; whether it must be reported at once."""
        is_scaled = self._pending.is_scaled
        return intervene(instruments, self._skipper, self._settings.on_nonfinite, scale, is_scaled)
