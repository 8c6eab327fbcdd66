"""One run under watch, whoever runs its loop: the order of the rooms, step by step. It knows torch, and no trainer."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.budget import Budget
from lightning_gradwatch.config import Config
from lightning_gradwatch.core import engines
from lightning_gradwatch.core._guard import attempt
from lightning_gradwatch.core.batch import check_batch
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.saved import State
from lightning_gradwatch.guarding import Guard, Health, Once, attending, survives
from lightning_gradwatch.host import Host
from lightning_gradwatch.listening import Hearing, Listener
from lightning_gradwatch.observing import UNSEEN, Batch, Observer, intervene_alone
from lightning_gradwatch.omitting import Omissions
from lightning_gradwatch.opening import open_sinks
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.reporting import Reporter
from lightning_gradwatch.responses import Responses
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.signals import SignalWatch
from lightning_gradwatch.trials.prescriber import Prescriber
from lightning_gradwatch.watches import Watches, by_name

_UNTRACED = nullcontext()


def _begin_unseen(self: Session, /, batch: object, number: int) -> None:  # noqa: ARG001
    """Begin a batch after a failure, without a look at it."""
    attempt(lambda: self._look_if_due(self._batch.next(number, UNSEEN)))


class Session:
    """Watches one run of a training loop.

    The loop calls, in this order: ``start``; for each batch ``before_forward``, ``before_backward``,
    ``after_backward``, ``before_step`` for each optimizer that steps, ``after_batch``; and at the end
    ``finish`` or ``break_off``, then ``close``. Under DDP all ranks call them equally often, also those on
    which the watch has failed.

    What is ours never fails the training: it costs one warning, and the watch switches itself off. Clipping goes on.

    Args:
        config: The arguments of the watch.
        host: The training loop.
        model: The model, whose module paths name the layers.
        state: What the run knew before; what it knows at the end is left there.

    Attributes:
        guard: What the watch still does, and what it costs.
        is_closed: Whether the run is over and nothing is left on the model.
        watches: The optimizers' watchers.
        sinks: Where everything goes.
        responses: What is done about alerts.
    """

    def __init__(self, config: Config, host: Host, model: nn.Module, state: RunState) -> None:
        self.model = model
        self.state = state
        self.guard = Guard(self._complain, self._record)
        self.is_closed = False
        self.sinks = Sinks(host)
        self.responses = Responses(config, host, model, state.alert_log)
        self._config = config
        self._host = host
        self._once = Once(host.warn)
        self._omissions = Omissions(host, state.left_out)
        self._optional = OptionalFigures(self._omissions)
        self._batch = Batch()
        limit, schedule = config.max_overhead, config.settings.schedule
        self._budget = None if limit is None else Budget(limit, schedule, config.log_every_n_steps, host)
        self._listener = Listener(host)
        self._rng_state: bytes | None = None
        self._build(Watches(model, config, state, can_hook=False, tell=self._omissions))
        self.guard.leaves_by(lambda: self.watches.close())
        self.guard.must_attend = self._resign

    def _build(self, watches: Watches) -> None:
        """Put the rooms behind the watchers together."""
        config, host = self._config, self._host
        self.watches = watches
        alert_log = self.state.alert_log
        self._reporter = Reporter(config, host, alert_log, self.sinks, watches, self.responses, self.guard.cost)
        self._observer = Observer(config, host, watches, self._reporter, self.sinks.flight, self._once)

    @property
    def is_off(self) -> bool:
        """Whether the watch has failed, and does no more than to clip."""
        return self.guard.is_off

    def _complain(self, failure: str) -> None:
        """Warn on rank zero; what has failed on another one, only its own log can tell."""
        self._host.warn(failure)
        if not self._host.is_global_zero():
            logging.getLogger("lightning_gradwatch").warning(failure)

    def note_random_state(self) -> None:
        """Call before the data loaders are made: the order of the first epoch's batches follows from it."""
        self._rng_state = _rng_state()

    def start(self) -> None:
        """Start a watch for every optimizer, before the first step.

        Raises:
            ValueError: If the arguments do not fit these optimizers.
        """
        optimizers = self._host.optimizers()
        self._config.check_sampling(len(optimizers))
        engines.check_run(self._host.whole_model(self.model), optimizers)
        if not self.is_off:
            self._config.check_policies(by_name(optimizers))
        self._start()
        for watch in self.watches:
            watch.watcher.check_clipping()

    @survives
    def _start(self) -> None:
        config, host = self._config, self._host
        # where everything goes; from now on a signal leaves a record
        self.sinks = sinks = open_sinks(config, host, self.state)
        if sinks.flight is not None:
            signals = SignalWatch(self._record)
            self.guard.leaves_by(signals.stop)
            signals.start()
        if config.prescribe_seconds and host.is_global_zero():
            is_done = any(alert.prescription for alert in self.state.alert_log.alerts)
            self.responses.prescriber = Prescriber(config.prescribe_seconds, is_done)
        # the watchers, one for each optimizer
        self._watch_all(can_hook=not host.is_compiled())
        for limit in self.watches.limits():
            host.inform(limit)
        sinks.open(host.loggers(), list(by_name(host.optimizers())))
        # who may come between us and the gradient as the backward pass left it
        if config.sample_at == "step":
            self.watches.compares = host.may_change_gradients()
            forget = host.before_clipping_by_hand(self.before_clipping)
            if forget is not None:
                self.guard.leaves_by(forget)
        complaint = self.state.complaint()
        if complaint is not None:
            host.warn(complaint)
        self._reporter.handle(Report(self.watches.abandoned(self.state.alert_log.alerts, host.step())))

    def _watch_all(self, can_hook: bool) -> None:
        host = self._host
        self._build(Watches(host.whole_model(self.model), self._config, self.state, can_hook, self._omissions))
        for name, optimizer in by_name(host.optimizers()).items():
            self.watches.add(optimizer, name)

    @survives
    def before_epoch(self) -> None:
        """Remember from which random state the order of the batches follows."""
        flight = self.sinks.flight
        if flight is not None:
            flight.begin_epoch(self._host.epoch(), self._rng_state or _rng_state())
            flight.describe(batches=self._host.about_batches())
        self._rng_state = None

    @attending(_begin_unseen)
    def before_forward(self, batch: object, number: int) -> None:
        """Call before the forward pass: puts the probe in place if a step of this batch will be sampled.

        Args:
            batch: What the loader has given.
            number: Its number in the epoch, from 0.
        """
        self.guard.cost.begin_step()
        inputs = self._optional.take("batch", UNSEEN, check_batch, batch)
        if self.responses.tracer is not None:
            self._optional.take("birth", None, self.responses.tracer.begin_batch, batch, self._batch.is_stepping)
        self._look_if_due(self._batch.next(number, inputs))
        if (prescriber := self.responses.prescriber) is not None:
            self._optional.take("remedies", None, prescriber.begin_batch, self._host.step(), self.model, batch)

    def _look_if_due(self, batch: Batch) -> None:
        """Begin a batch; it may have as many steps as the one before."""
        # only now the host knows where the run stands, if it was resumed
        if not self.watches.has_counted:
            self.watches.count_points(self._observer.num_past_points())
        may_look = self._listener.hearing is not Hearing.GIVEN_UP or self.watches.num_steps > 0
        num_further, self._batch = max(self._batch.num_observations - 1, 0), batch
        self.watches.begin_batch(num_further, may_look)

    @attending(lambda self, loss: self._take_loss(loss))
    def before_backward(self, loss: object) -> None:
        """Call before the backward pass: only gradients between this and ``after_backward`` are those of the loss.

        Args:
            loss: What is differentiated, see ``note_loss``.
        """
        self.watches.probe.account.begin_backward(loss if isinstance(loss, Tensor) else None)
        self._take_loss(loss)

    @survives
    def note_loss(self, loss: object) -> None:
        """Remember the loss, which is read together with the gradients; for loops that do not announce backward passes.

        Args:
            loss: A tensor; an object of another kind, which may stand for several losses, is not known.
        """
        self._take_loss(loss)

    def _take_loss(self, loss: object) -> None:
        if isinstance(loss, Tensor):
            if not self.watches.is_surveyed:
                self.watches.inspect(loss)
            self._batch.loss = self._host.whole_loss(loss.detach())

    def after_backward(self) -> None:
        """Call after the backward pass: observes, if every backward pass is to be observed."""
        self._observer.is_done = self._config.sample_at != "backward"
        self._end_backward()
        if self.guard.health is Health.ATTENDING and not self._observer.is_done:
            self.guard.attend(lambda: self._observer.after_backward(self._batch))

    @survives
    def _end_backward(self) -> None:
        self.watches.end_backward()
        if not self._observer.is_done:
            self._observer.after_backward(self._batch)

    def before_step(self, optimizer: Optimizer) -> None:
        """Observe the complete, unclipped gradient, and clip it; clip also after the watch has failed.

        Args:
            optimizer: The optimizer that is about to step.

        Raises:
            GradientAlertError: If the user has asked for it.
        """
        self._observer.is_done, self._batch.is_stepping = False, True
        with self.responses.traced(self.sinks) if self.responses.tracer is not None else _UNTRACED:
            self._observe_step(optimizer)
        if self.guard.health is Health.ATTENDING and not self._observer.is_done:
            self.guard.attend(lambda: self._observer.before_step(self._batch, optimizer))
        if self.guard.health is Health.CLIPPING and self._config.intervenes:
            watch = self.watches.of(optimizer)
            raises = self._config.settings.on_nonfinite == "raise"
            if watch and not intervene_alone(self._host, watch, raises):
                self.guard.health = Health.SILENT
        if self.responses.actions is not None:
            self.responses.act(is_before_step=True)
        if self.responses.prescriber is not None and self._prescribe(is_before_step=True):
            self.guard.cost.begin_step()

    @survives
    def _observe_step(self, optimizer: Optimizer) -> None:
        self._listener.num_announced += 1
        self._observer.before_step(self._batch, optimizer)

    def before_clipping(self, optimizer: Optimizer, still_scaled: bool) -> None:
        """Call before somebody else clips a gradient in the course of a step, and ``before_step`` thereafter."""
        self._observer.is_done = False
        self._observe_clipping(optimizer, still_scaled)
        if self.guard.health is Health.ATTENDING and not self._observer.is_done:
            self.guard.attend(lambda: self._observer.before_clipping(self._batch, optimizer, still_scaled))

    @survives
    def _observe_clipping(self, optimizer: Optimizer, still_scaled: bool) -> None:
        self._observer.before_clipping(self._batch, optimizer, still_scaled)

    def after_batch(self) -> None:
        """Take the probe away once the optimizer has stepped, look at the cost, and do what alerts ask for.

        Raises:
            GradientAlertError: If the user has asked for it.
        """
        self._end_batch()
        if self.guard.health is Health.ATTENDING:
            self.guard.attend(lambda: attempt(self._look_away))
        if self.responses.actions is not None:
            self.responses.act(is_before_step=False)
        prescriber = self.responses.prescriber
        if prescriber is not None:
            self._prescribe(is_before_step=False)
            prescriber.end_batch()
        if self._budget is not None:  # ranks on which the watch has failed take part
            with self.guard.survives("after_batch"):
                self._budget.hold(self.guard.cost, self.watches)

    def _prescribe(self, is_before_step: bool) -> bool:
        """Try remedies if an alert asks for it; whether it took time."""
        return not self.is_off and self.responses.prescribe(self.watches, self.sinks, is_before_step)

    @survives
    def _end_batch(self) -> None:
        watches, cost = self.watches, self.guard.cost
        probe_seconds, is_sampled = self._look_away()
        cost.spent += probe_seconds
        cost.end_step(is_sampled)
        if watches.probe.left_out:
            self._once(watches.blindness(), about="the layers' outputs")
        if self._listener.hearing is Hearing.LISTENING:
            complaint = self._listener.after_batch(self.model, watches.num_steps)
            if complaint is not None:
                watches.probe.detach()
                self._host.warn(complaint)

    def _look_away(self) -> tuple[float, bool]:
        """Time that the probe has spent in the batch, in seconds, and whether a sample was taken."""
        told = self.watches.end_batch()
        if self._batch.is_stepping:
            self.watches.probe.detach()
        return told

    def _resign(self) -> bool:
        """After a failure: whether the other ranks need this one, which then keeps silent."""
        if not any(True for _ in self.watches):  # it has failed before there were any
            attempt(lambda: self._watch_all(can_hook=False))
        self._observer.resign()
        needed = [watch.watcher.resign() for watch in self.watches]
        return any(needed)

    @survives
    def pause(self) -> None:
        """Look away: a model may be validated in the middle of a step."""
        self.watches.probe.pause()

    @survives
    def resume(self) -> None:
        """Look again."""
        self.watches.probe.resume()

    def finish(self) -> None:
        """Publish what is left at the end of training, and do what its alerts ask for.

        Raises:
            GradientAlertError: If the user has asked for it.
        """
        self._finish("end")
        self.guard.attend(self._flush)
        self.responses.act_at_the_end()

    def break_off(self, reason: str) -> None:
        """Publish what is left after an exception; the other ranks may be far away.

        Args:
            reason: Its name, for the flight record, which is kept before anything else: what broke the run may break
                us, and the device, too.
        """
        if not self.is_off:
            self.guard.ending = reason
            self._record(reason)
        self._finish(reason, together=False)

    @survives
    def _finish(self, reason: str, together: bool = True) -> None:
        self.guard.ending = reason
        self.watches.probe.detach()
        reports = self._flush(together)
        self._reporter.finish(reports, reason)
        if reports:
            self._reporter.sum_up()
        self.state.watchers = {**self.state.watchers, **self.watches.states()}
        self.state.record = {}  # all of it has been written

    def _flush(self, together: bool = True) -> list[Report]:
        is_logging = bool(self._config.log_every_n_steps or self._host.log_every_n_steps())
        return [watch.watcher.flush(is_logging, together) for watch in self.watches]

    def close(self) -> None:
        """Leave no hook on the model, no handler of signals, and nothing on the host's own objects.

        Neither a veil on the model nor a message is left behind; what comes later is another run's.
        """
        self.is_closed = True
        with self.guard.survives("close"):
            try:
                attempt(self.watches.probe.close)
                self.responses.prescriber = self.responses.tracer = None
            finally:
                self.guard.leave()
            self.sinks.close()

    def state_dict(self) -> State:
        """Counters, windows, detectors and alerts: tensors and primitives, so it loads with ``weights_only=True``."""
        state = self.state.state_dict()
        with self.guard.survives("state_dict"):
            state["watchers"] = {**self.state.watchers, **self.watches.states()}
            if self.sinks.recorder is not None:
                state["record"] = self.sinks.recorder.state_dict()
        return state

    def _record(self, reason: str) -> None:
        """Keep the flight record, without waiting for a device that may hang."""
        self.sinks.dump(reason, self.state.alert_log.alerts, may_wait=False)


def _rng_state() -> bytes:
    """Of torch's generator on the CPU, from which samplers draw."""
    return bytes(torch.get_rng_state().numpy().tobytes())
