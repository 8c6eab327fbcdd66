"""What is done about alerts besides telling of them: actions, alike on all ranks, and trials of remedies."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_gradwatch.actions import Actions
from lightning_gradwatch.alert_log import AlertLog
from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.host import Host
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.trials.prescriber import Prescriber
from lightning_gradwatch.watches import Watches


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
    """

    def __init__(self, config: Config, host: Host, model: nn.Module, alert_log: AlertLog) -> None:
        self._policies = config.settings.policies
        self._host = host
        self._model = model
        self._alert_log = alert_log
        self.actions = Actions(config.on_alert, config.settings.schedule, host) if config.acts else None
        self.prescriber: Prescriber | None = None

    def note(self, opened: Iterable[Alert]) -> None:
        """Remember alerts that have opened, or risen from a notice."""
        opened = list(opened)
        if self.actions is not None:
            self.actions.note(opened)
        if self.prescriber is not None:
            self.prescriber.note(opened)

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
