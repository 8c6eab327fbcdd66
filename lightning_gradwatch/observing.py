"""When a gradient is looked at: once per optimizer step, complete, and before anybody clips it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.batch import join
from lightning_gradwatch.core.records import BatchCheck, Coverage
from lightning_gradwatch.errors import GradientAlertError
from lightning_gradwatch.guarding import Once
from lightning_gradwatch.host import Host
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.reporting import Reporter
from lightning_gradwatch.watches import OptimizerWatch, Watches, num_log_points, optimizer_names

UNSEEN = BatchCheck(None, Coverage.NOTHING)
_CLIPPED_TWICE = (
    "GradWatch: `auto_clip` clips each gradient before the `clip_gradients(...)` of your own code clips it "
    "once more. To cure it: leave one of them out."
)


@dataclass
class Batch:
    """The batch under way.

    Attributes:
        number: Its number in the epoch, from 0.
        loss: The loss that was differentiated last, detached, times the number of batches it was divided by.
        inputs: Whether what the coming step is made of was finite: this batch, and those accumulated before it.
        num_observations: Gradients observed in it so far, of all optimizers together.
        is_stepping: Whether a step has begun in it; otherwise its gradients are added to those of the next batch.
    """

    number: int = 0
    loss: Tensor | None = None
    inputs: BatchCheck = UNSEEN
    num_observations: int = 0
    is_stepping: bool = True

    def next(self, number: int, inputs: BatchCheck) -> Batch:
        """The batch after this one."""
        return Batch(number, None, inputs if self.is_stepping else join(self.inputs, inputs), is_stepping=False)


class Observer:
    """Looks at the gradients of a run's optimizers.

    Args:
        config: The arguments of the watch.
        host: The training loop.
        watches: The optimizers' watchers.
        reporter: Takes what they report.
        flight: Remembers the steps; None for no record.
        once: Warns once.

    Attributes:
        is_done: Whether the gradient at hand has been observed.
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        watches: Watches,
        reporter: Reporter,
        flight: FlightRecorder | None,
        once: Once,
    ) -> None:
        self._host = host
        self._watches = watches
        self._reporter = reporter
        self.is_done = False
        self._has_resigned = False
        self._flight = flight
        self._once = once
        self._is_at_step = config.sample_at == "step"
        self._clips = bool(config.settings.policies)
        self._raises = config.settings.on_nonfinite == "raise"
        every = config.log_every_n_steps
        self._log_every_n_steps = host.log_every_n_steps if every is None else lambda: every

    def before_step(self, batch: Batch, optimizer: Optimizer) -> None:
        """Observe, and clip, the gradient of the step that an optimizer is about to take."""
        if batch.loss is None and self._host.steps_only_with_a_loss():
            return
        watch = None
        if self._is_at_step:
            watch = self._watches.of(optimizer) or self._take_over(optimizer)
        if watch is None:
            return
        if watch.is_ahead:  # the model has clipped it since
            watch.is_ahead = False
            return
        scale = self._host.loss_scale()
        self._look(batch, watch, scale, scale is not None and self._host.still_scaled(optimizer))

    def before_clipping(self, batch: Batch, optimizer: Optimizer, still_scaled: bool) -> None:
        """Observe the gradient of the coming step before the model clips it by hand."""
        watch = self._watches.of(optimizer) or self._take_over(optimizer)
        if watch is None:
            return
        if self._clips:
            self._once(_CLIPPED_TWICE)
        scale = self._host.loss_scale()
        self._look(batch, watch, scale, scale is not None and still_scaled)
        watch.is_ahead = True

    def after_backward(self, batch: Batch) -> None:
        """Observe the gradients as a backward pass has left them, where each of these is to be observed."""
        for watch in self._watches:  # there is one at most
            batch.is_stepping = self._host.completes_a_step()
            scale = self._host.loss_scale()
            self._observe(batch, watch, scale, is_scaled=scale is not None)

    def resign(self) -> None:
        """Only take part, from now on, in what the ranks do together."""
        self._has_resigned = True

    def num_past_points(self) -> int:
        """How many times the loggers were due before the coming step."""
        return num_log_points(self._host.step(), self._log_every_n_steps())

    def _take_over(self, optimizer: Optimizer) -> OptimizerWatch | None:
        """The watch over an optimizer that has taken another's place in the host; None if it is not the host's."""
        optimizers = self._host.optimizers()
        place = next((place for place, known in enumerate(optimizers) if known is optimizer), None)
        if place is None:
            return None
        for report in self._watches.retire(optimizers):
            self._reporter.handle(report)
        watch = self._watches.add(optimizer, optimizer_names(optimizers)[place])
        self._watches.count_points(self.num_past_points())
        return watch

    def _look(self, batch: Batch, watch: OptimizerWatch, scale: Tensor | None, is_scaled: bool) -> None:
        """Observe a step at its first evaluation; clip or skip at the further ones.

        What the optimizer is given last is what it applies.

        Args:
            batch: The batch under way.
            watch: Over the optimizer.
            scale: The loss scaler's factor; None without one.
            is_scaled: Whether the gradients still carry it.
        """
        if not watch.has_observed(self._host.num_finished_steps()):
            self._observe(batch, watch, scale, is_scaled)
            return
        self.is_done = True
        if watch.watcher.intervene_again(loss_scale=scale, gradients_scaled=is_scaled) and self._raises:
            raise GradientAlertError([])

    def _observe(self, batch: Batch, watch: OptimizerWatch, scale: Tensor | None, is_scaled: bool) -> None:
        num_points = watch.num_points
        try:
            self._take(batch, watch, scale, is_scaled)
        except Exception:
            if not self.is_done:  # what other ranks wait for is done again
                watch.last_finished, watch.num_points = None, num_points
            raise

    def _take(self, batch: Batch, watch: OptimizerWatch, scale: Tensor | None, is_scaled: bool) -> None:
        batch.num_observations += 1
        step = self._host.step()
        publish = False
        if self._is_at_step or batch.is_stepping:
            publish = watch.passes_log_point(num_log_points(step + 1, self._log_every_n_steps()))
        if self._has_resigned:
            watch.watcher.attend(loss_scale=scale, gradients_scaled=is_scaled, publish=publish)
            return
        if self._flight is not None:
            groups, epoch = watch.optimizer.param_groups, self._host.epoch()
            self._flight.begin_step(watch.watcher.name, step, epoch, batch.number, groups, scale)
        report = watch.watcher.observe(
            step,
            batch.loss,
            inputs=batch.inputs,
            loss_scale=scale,
            gradients_scaled=is_scaled,
            publish=publish,
        )
        self.is_done = True
        if report.has_news:
            self._reporter.handle(report)
        # a loss scaler skips such a step by itself
        if self._raises and scale is None:
            fatal = [alert for alert in report.alerts if alert.kind == "nonfinite" and alert.until_step is None]
            if fatal:
                raise GradientAlertError(fatal)


def intervene_alone(host: Host, watch: OptimizerWatch, raises: bool) -> bool:
    """Clip or skip though the watch has failed.

    Args:
        host: The training loop.
        watch: Of the optimizer that is about to step.
        raises: Whether a gradient that is not finite is to be raised.

    Returns:
        Whether that is still possible.

    Raises:
        GradientAlertError: If the gradient is not finite, where that is to be raised.
    """
    try:
        is_scaled = host.still_scaled(watch.optimizer)
        is_fatal = watch.watcher.clip_only(loss_scale=host.loss_scale(), gradients_scaled=is_scaled)
    except Exception as failure:
        if is_the_users(failure):
            raise
        host.warn(f"GradWatch can no longer clip the gradients.\n{traceback.format_exc()}")
        return False
    if is_fatal and raises:
        raise GradientAlertError([])
    return True
