"""What is done about alerts besides telling of them: actions, alike on all ranks, and trials of remedies."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from lightning_gradwatch.actions import Actions
from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.births.tracer import tracer_for
from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.errors import GradientAlertError
from lightning_gradwatch.host import Host
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.trials.prescriber import Prescriber
from lightning_gradwatch.watches import Watches

_LOG = logging.getLogger("lightning_gradwatch")
_UNTRACED = (
    'GradWatch: on_nonfinite="trace" computes a step again, and the loss of this model is not known. To cure it: '
    "pass `loss_fn=`, and call `before_forward(batch)`."
)
_ELSEWHERE = (
    "GradWatch: replayed on this rank, the step is finite. The batch of another rank carries the NaN, and the log of "
    "that rank says where it was born."
)


class Responses:
    """Responds to the alerts of one run.

    Args:
        config: The arguments of the watch.
        host: The training loop.
        model: The model, of which trials take a copy.
        alert_log: The alerts of the run, which what was tried is entered into.

    Attributes:
        actions: Acts on alerts, together with the other ranks; None where warnings are enough.
        prescriber: Tries remedies on this rank; None for no trials.
        tracer: Finds out on this rank where NaN was born; None where it cannot.
    """

    def __init__(self, config: Config, host: Host, model: nn.Module, alert_log: AlertLog) -> None:
        self._policies = config.settings.policies
        self._host = host
        self._model = model
        self._alert_log = alert_log
        self.actions = Actions(config.on_alert, config.settings.schedule, host) if config.acts else None
        self.prescriber: Prescriber | None = None
        self.tracer = tracer_for(host, model, config.settings.on_nonfinite)
        if config.settings.on_nonfinite == "trace" and self.tracer is None:
            host.warn(_UNTRACED)

    def note(self, opened: Iterable[Alert]) -> None:
        """Remember alerts that have opened, or risen from a notice."""
        opened = list(opened)
        if self.actions is not None:
            self.actions.note(opened)
        if self.prescriber is not None:
            self.prescriber.note(opened)
        if self.tracer is not None:
            self.tracer.note(opened)

    def act(self, is_before_step: bool) -> None:
        """Act where all ranks come by equally often, also those on which the watch has failed.

        A checkpoint from before the step replays the batch; but not where a part of the step is already done.

        Args:
            is_before_step: Whether the optimizer is about to step; otherwise a batch is over.

        Raises:
            GradientAlertError: If the user wants it.
        """
        if self.actions is None:
            return
        host = self._host
        is_one_step = host.steps_once_per_batch()
        if is_one_step == is_before_step:
            self.actions.decide()
        is_whole = host.accumulated_batches() == 1 if is_before_step else host.completes_a_step()
        if is_whole and is_one_step >= is_before_step:
            self.actions.save()

    def act_at_the_end(self) -> None:
        """Do what the last alerts ask for.

        Raises:
            GradientAlertError: If the user wants it.
        """
        if self.actions is not None:
            self.actions.decide(is_last=True)
            self.actions.save()

    @contextmanager
    def traced(self, sinks: Sinks) -> Iterator[None]:
        """Observe a step, and find out where its NaN was born before it is taken, or before an error ends the run.

        Raises:
            GradientAlertError: What came, with what was found.
        """
        try:
            yield
        except GradientAlertError as error:
            told = self._trace(sinks)
            raise GradientAlertError([told] if told is not None else error.alerts) from None
        self._trace(sinks)

    def _trace(self, sinks: Sinks) -> Alert | None:
        """Trace an alert if one asks for it; a failure costs a line."""
        alert = None if self.tracer is None else self.tracer.due()
        if self.tracer is None or alert is None:
            return None
        try:
            traced = self.tracer.trace(alert)
            if traced is None or traced.birth is None:
                if self._host.num_ranks() > 1:
                    self._host.inform(_ELSEWHERE)
                return None
            text = traced.birth["text"]
            traced = self._alert_log.amend(traced)
            sinks.tell("traced", traced)
            sinks.write_alerts(self._host.loggers(), self._alert_log.alerts, self._alert_log.num_alerts)
            self._host.warn(f"GradWatch: the NaN or infinite values of step {alert.step} were {text}.")
            if not self._host.is_global_zero():
                _LOG.warning("GradWatch, on this rank: %s", text)
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._host.inform(f"GradWatch could not find where the NaN was born ({failure!r}); training goes on.")
            return None
        return traced

    def prescribe(self, watches: Watches, sinks: Sinks, is_before_step: bool) -> bool:
        """Try remedies if an alert asks for it; whether it took time. A failure costs a warning, and nothing else."""
        alert = self.prescriber.due(is_before_step) if self.prescriber is not None else None
        if self.prescriber is None or alert is None:
            return False
        try:
            watch = watches.named(alert.optimizer)
            optimizer = None if watch is None else watch.optimizer
            treated = sinks.prescribed(alert) or self.prescriber.treat(
                alert, self._host, self._model, optimizer, self._policies
            )
            if treated is not None:
                sinks.tell("prescribed", self._alert_log.amend(treated))
                num_alerts = self._alert_log.num_alerts
                sinks.write_alerts(self._host.loggers(), self._alert_log.alerts, num_alerts)
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._host.warn(f"GradWatch could not try remedies ({failure!r}); training goes on.")
        return True
