"""A hand-written training loop of which each part can be watched: what GradWatch's hooks do, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gradwatch.core.batch import check_batch
from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.records import BatchCheck, Observation
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher

from .models import Batch

NEVER = 10**6


def settings(dense_steps: int = 0, every: int = NEVER, clip: Any = None, **options: Any) -> Settings:
    """What to watch; no sample unless asked for."""
    return Settings(Schedule(dense_steps, every), policies=make_policies(clip), **options)


class Training:
    """One model, one batch, one optimizer, and perhaps a watcher.

    Args:
        model: The network, on its device.
        batch: What every step trains on.
        watch: What to watch; None for nobody.
        dtype: Of autocast; None for none.
        optimizer: Makes the optimizer.
        scaler: A loss scaler, or None.
        before_step: Called between the backward pass and the optimizer's step: what people use instead.
        lr: The learning rate.

    Attributes:
        guard: Entered around everything that GradWatch is called for.
        guard_all: Entered around the whole step, hooks in the forward and backward pass included.
        left_out: What GradWatch says it leaves out.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        watch: Settings | None = None,
        dtype: torch.dtype | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        scaler: Any = None,
        before_step: Callable[[], object] | None = None,
        lr: float = 1e-3,
    ) -> None:
        self.model, self.batch, self.dtype, self.scaler = model, batch, dtype, scaler
        self.optimizer = optimizer(model.parameters(), lr=lr)
        self.left_out: list[str] = []
        self.watcher = None if watch is None else self.make_watcher(watch)
        self.before_step = before_step
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.guard_all: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.observations: list[Observation] = []
        self.alerts: list[tuple[str, int]] = []
        self.num_steps = 0

    def make_watcher(self, watch: Settings) -> Watcher:
        """A watcher of this training."""
        return Watcher(self.model, self.optimizer, watch, tell=lambda omission: self.left_out.append(str(omission)))

    @property
    def troubles(self) -> list[str]:
        """What GradWatch does without, or does the slow way, after a failure that it has survived."""
        watcher = self.watcher
        if watcher is None or watcher.instruments is None:
            return self.left_out if watcher is None else ["nothing was watched"]
        instruments = watcher.instruments
        slow = instruments.window._groups is None or instruments.meter._groups is None
        blind = watcher._probe.failure or [f"{name}: {why!r}" for name, why in watcher._probe._failures.items()]
        return [*self.left_out, *(["norms one by one"] if slow else []), *([str(blind)] if blind else [])]

    def step(self, publish: bool = False, spoil: Callable[[nn.Module], None] | None = None) -> None:
        """One step; ``spoil`` may change the gradients after the backward pass."""
        with self.guard_all():
            report = self._step(publish, spoil)
        self._take_in(report)
        self.num_steps += 1

    def _step(self, publish: bool, spoil: Callable[[nn.Module], None] | None) -> Report:
        inputs = None
        if self.watcher is not None:
            with self.guard():
                self.watcher.arm()
                inputs = check_batch(self.batch)
        with self._autocast():
            output = self.model(self.batch[0])
            loss = F.cross_entropy(output.flatten(0, -2).float(), self.batch[1].flatten())
        if self.watcher is not None:
            self.watcher.inspect(loss)
        self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if spoil is not None:
            spoil(self.model)
        self._unscale()
        report = Report()
        if self.watcher is not None:
            with self.guard():
                report = self._observe(self.watcher, loss, inputs, publish)
        if self.before_step is not None:
            self.before_step()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return report

    def finish(self) -> None:
        """Bring home what is still on the device."""
        if self.watcher is not None:
            self._take_in(self.watcher.flush(publish=False))

    @property
    def is_fused(self) -> bool:
        """Whether gradients still carry the loss scale when they are observed."""
        return bool(getattr(self.optimizer, "_step_supports_amp_scaling", False))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.batch[0].device.type, self.dtype)

    def _unscale(self) -> None:
        if self.scaler is not None and not self.is_fused:
            self.scaler.unscale_(self.optimizer)

    def _observe(self, watcher: Watcher, loss: Tensor, inputs: BatchCheck | None, publish: bool) -> Report:
        scale = None if self.scaler is None else self.scaler._scale
        scaled = None if scale is None else loss.detach() * scale
        return watcher.observe(
            loss=loss.detach() if scaled is None else scaled,
            inputs=inputs,
            loss_scale=scale,
            gradients_scaled=scale is not None and self.is_fused,
            publish=publish,
        )

    def _take_in(self, report: Report) -> None:
        self.observations += report.observations
        self.alerts += [(alert.kind, alert.step) for alert in report.alerts]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU in here raises; on a CPU nothing is checked."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
