"""Every question to Lightning, and the only home of its private names; both of its namespaces are served alike."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

import lightning_gradwatch
from lightning_gradwatch import _places, scaling
from lightning_gradwatch._clipping_by_hand import before_clipping_by_hand
from lightning_gradwatch.asking import ask, own_attributes
from lightning_gradwatch.config import Config
from lightning_gradwatch.console import shown_in_lines
from lightning_gradwatch.core import engines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import attempt, is_the_users
from lightning_gradwatch.core.modules import facts_of
from lightning_gradwatch.errors import GradWatchWarning
from lightning_gradwatch.host import RunInfo

if TYPE_CHECKING:
    import lightning.pytorch
    import pytorch_lightning

    Trainer: TypeAlias = lightning.pytorch.Trainer | pytorch_lightning.Trainer
    LightningModule: TypeAlias = lightning.pytorch.LightningModule | pytorch_lightning.LightningModule

    class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
        """A callback for the Trainers of both namespaces; the hooks of one take the Trainer of that one only."""
else:
    from lightning_gradwatch._namespaces import Callback as Callback

    Trainer = LightningModule = Any

T = TypeVar("T")

_PAST_US = (
    "Either the optimizer steps within the backward pass and takes the gradient away; or it steps behind Lightning's "
    "back, by `step()` of the torch optimizer itself; or `training_step` returned None; or nothing requires a gradient "
    "in the optimizers that `configure_optimizers` returned. Try: after `self.manual_backward(loss)`, call `step()` of "
    "what `self.optimizers()` returns; or, for a single optimizer that keeps its own ways but steps after the backward "
    'pass, `GradWatch(sample_at="backward")`.'
)


class LightningHost:
    """A Trainer, and the model that it fits, as the host of a session.

    Neither the Trainer nor the callback is kept alive by it. It belongs to the process that made it: a forked child is
    another host's.

    Args:
        trainer: The Trainer.
        pl_module: The model.
        watch: The callback, to tell who comes after it among the others.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, watch: object) -> None:
        self._trainer = cast("Callable[[], Trainer]", weakref.ref(trainer))  # which lives while its hooks are called
        self._module = pl_module
        self._watch = weakref.ref(watch)
        self._pid = os.getpid()
        self._driver: engines.Driver | None = None

    def begin(self) -> None:
        """Call when training starts: the strategy has put its wrapper around the model by now."""
        self._driver = engines.driver_of(self._trainer().strategy.model)

    def belongs_to(self, trainer: Trainer) -> bool:
        """Whether it is this Trainer's, and not that of another one nearby, nor of the parent of a forked process."""
        return self._trainer() is trainer and self._pid == os.getpid()

    def is_busy_beside(self, trainer: Trainer) -> bool:
        """Whether it is another Trainer's, and that one is fitting: it has called this one in a hook or a thread."""
        other = self._trainer()
        return other is not trainer and self._pid == os.getpid() and is_fitting(other)

    # --- where the training stands

    def step(self) -> int:
        """The step under which Lightning itself logs the coming optimizer step: batches that stepped so far."""
        return int(self._trainer().fit_loop.epoch_loop._batches_that_stepped)

    def num_finished_steps(self) -> int:
        """Optimizer steps that have ended, those of all optimizers together; evaluations within a step do not count."""
        return int(self._trainer().global_step) if self._driver is None else self._driver.num_steps()

    def epoch(self) -> int:
        """The epoch, from 0."""
        return int(self._trainer().current_epoch)

    def log_every_n_steps(self) -> int:
        """Steps between two points of the Trainer's own loggers; 0 for never."""
        return getattr(self._trainer(), "log_every_n_steps", 0) or 0

    # --- how it steps

    def optimizers(self) -> Sequence[Optimizer]:
        """The Trainer's optimizers."""
        return self._trainer().optimizers

    def loss_scale(self) -> Tensor | None:
        """Factor of the loss scaler, shape ``()``, without a host sync; None without a scaler."""
        if self._driver is None:
            scaler = ask(self._trainer().precision_plugin, "scaler")
            return None if scaler is None else scaling.scale_of(scaler)
        scale = self._driver.loss_scale()
        return None if scale is None else torch.tensor(scale, device="cpu")

    def still_scaled(self, optimizer: Optimizer) -> bool:
        """Whether gradients still carry the loss scale, if there is one, when Lightning announces the step."""
        return self._driver is not None or scaling.unscales_itself(optimizer)

    def steps_now(self) -> bool:
        """Whether the step that Lightning announces is one: it announces those of DeepSpeed at every micro-batch."""
        return self._driver is None or self._driver.completes_a_step()

    def whole_model(self, model: nn.Module) -> nn.Module:
        """The model with the wrapper that FSDP1 has put around it."""
        wrapped = self._trainer().strategy.model
        return wrapped if wrapped is not None and engines.is_wrapper(wrapped) else model

    def accumulated_batches(self) -> int:
        """The number by which Lightning has divided the loss."""
        return int(self._trainer().accumulate_grad_batches)

    def whole_loss(self, loss: Tensor) -> Tensor:
        """Lightning has divided it; DeepSpeed scales it later than Lightning would."""
        factor = float(self._trainer().accumulate_grad_batches)
        if self._driver is not None:
            factor *= self._driver.loss_scale() or 1.0
        return loss if factor == 1 else loss * factor

    def completes_a_step(self) -> bool:
        """Whether the present backward pass is the last one before the optimizer steps."""
        return not self._trainer().fit_loop._should_accumulate()

    def steps_once_per_batch(self) -> bool:
        """Whether Lightning itself steps, with optimizers that evaluate a step once."""
        is_manual = not self._trainer().lightning_module.automatic_optimization
        return not is_manual and not any(isinstance(optimizer, LBFGS) for optimizer in self._trainer().optimizers)

    def steps_only_with_a_loss(self) -> bool:
        """Whether Lightning takes no step, and leaves the loss scale in the gradients, if there is no loss."""
        return bool(self._module.automatic_optimization) and self.loss_scale() is not None

    def is_compiled(self) -> bool:
        """Whether the whole LightningModule was given to the Trainer through torch.compile."""
        return facts_of(self._module).get("_compiler_ctx") is not None

    def may_change_gradients(self) -> bool:
        """Whether the user's own code runs between our look after the backward pass and that before the step.

        Lightning calls a hook of the callbacks one by one, and then that of the model.
        """
        everyone, watch = callbacks(self._trainer()), self._watch()
        place = next((place for place, callback in enumerate(everyone) if callback is watch), len(everyone))
        after_backward = [*everyone[place + 1 :], self._module]
        return (
            not self._module.automatic_optimization
            or any(_has_own(actor, "on_after_backward") for actor in after_backward)
            or any(_has_own(callback, "on_before_optimizer_step") for callback in everyone[:place])
        )

    def before_clipping_by_hand(self, call: Callable[[Optimizer, bool], None]) -> Callable[[], None] | None:
        """Call back before ``self.clip_gradients(...)`` of a model in manual optimization; returns what undoes it."""
        if self._module.automatic_optimization:
            return None
        plugin = self._trainer().precision_plugin

        def heard(optimizer: Optimizer) -> None:
            call(optimizer, scaling.still_scaled(ask(plugin, "scaler"), optimizer))

        return before_clipping_by_hand(self._trainer(), heard)

    def ways_past_us(self) -> str:
        """How gradients may get past us in a LightningModule, and what to try then."""
        return _PAST_US

    # --- together with other ranks

    def is_global_zero(self) -> bool:
        """Whether this is rank zero."""
        return bool(self._trainer().is_global_zero)

    def num_ranks(self) -> int:
        """Number of processes that train together."""
        return int(self._trainer().world_size)

    def broadcast(self, value: T) -> T:
        """What rank zero has; all ranks must call this together."""
        told: T = self._trainer().strategy.broadcast(value)
        return told

    # --- what it can be asked to do

    def warn(self, message: str) -> None:
        """Warn once, on rank zero."""
        warn(message)

    def inform(self, message: str) -> None:
        """Say something on rank zero that is no trouble."""
        inform(message)

    def stop(self) -> None:
        """End training after the present batch, but not before ``min_steps`` and ``min_epochs``."""
        self._trainer().should_stop = True

    def save_checkpoint(self, path: str) -> None:
        """Save a checkpoint; all ranks must call this together, and none is left waiting if it cannot be written."""
        try:
            self._trainer().save_checkpoint(path)
        except Exception as failure:  # stores have errors of many kinds
            if self.num_ranks() > 1 and not is_the_users(failure):
                self._trainer().strategy.barrier("Trainer.save_checkpoint")  # where the others wait
            raise

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Make numbers known to ``EarlyStopping``, ``ModelCheckpoint`` and the caller of ``fit``."""
        known = known_metrics(self._trainer(), "callback_metrics")
        for name, value in metrics.items():
            known[name] = torch.full((), value, device="cpu")

    def show_in_progress_bar(self, name: str, text: str | None) -> None:
        """Show a number beside the progress bar; None takes it away."""
        shown = known_metrics(self._trainer(), "progress_bar_metrics")
        if text is None:
            shown.pop(name, None)
        else:
            shown[name] = text

    # --- what belongs to the run

    def run_info(self) -> RunInfo:
        """Where the loggers keep the run, and what it is; meant for rank zero."""
        trainer = self._trainer()
        name = _places.run_name(trainer)
        about = {
            "run": name,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "num_ranks": self.num_ranks(),
            "accumulate_grad_batches": self.accumulated_batches(),
            "torch": torch.__version__,
            "lightning_gradwatch": lightning_gradwatch.__version__,
        }
        return RunInfo(
            name=name,
            log_dir=_places.log_dir(trainer),
            spare_dir=_places.spare_dir(trainer),
            is_rehearsal=_places.is_dev_run(trainer),
            about=about,
        )

    def about_batches(self) -> list[dict[str, object]]:
        """How each of the training data loaders draws its batches."""
        loaders = getattr(self._trainer().fit_loop._combined_loader, "flattened", [])
        return [_drawing(loader) for loader in loaders]

    def checkpoint_dir(self) -> str:
        """Where Lightning itself puts checkpoints unless told otherwise; meant for rank zero."""
        return _places.checkpoint_dir(self._trainer())

    def loggers(self) -> list[object]:
        """The Trainer's loggers on rank zero; none on other ranks and in a ``fast_dev_run``."""
        trainer = self._trainer()
        return list(trainer.loggers) if trainer.is_global_zero and not _places.is_dev_run(trainer) else []

    def tag_prefix(self, logger: object) -> str:
        """What a logger puts before the tags of its metrics, such as ``TensorBoardLogger(prefix=...)``."""
        return _places.tag_prefix(logger)

    # --- for trials of remedies

    def loss_fn(self) -> None:
        """The model's own ``training_step``."""

    def mixed_precision(self) -> torch.dtype | None:
        """The dtype under autocast; None for no mixed precision."""
        return scaling.mixed_precision(self._trainer().precision_plugin)

    def own_clipping(self) -> tuple[float, bool] | None:
        """What the Trainer itself clips at, and whether by value instead of by norm; None if it does not clip."""
        config = ask(self._trainer().strategy, "config")  # of DeepSpeed, where it goes before the Trainer's
        given = config.get("gradient_clipping") if isinstance(config, dict) else None
        at = getattr(self._trainer(), "gradient_clip_val", None) if given is None else given
        by = str(getattr(self._trainer(), "gradient_clip_algorithm", None) or "norm")
        return (float(at), by.lower().endswith("value")) if at else None


def warn(message: str) -> None:
    """Warn once, on rank zero; what cannot be a warning goes to the log, so that nothing of the user's fails."""
    from lightning_utilities.core.rank_zero import rank_zero_warn

    try:
        with shown_in_lines():
            rank_zero_warn(message, category=GradWatchWarning, stacklevel=7)
    except Exception as failure:  # warnings may be errors, and without Lightning nobody knows the rank
        if is_the_users(failure):
            raise
        attempt(lambda: logging.getLogger("lightning_gradwatch").warning(message))


def inform(message: str) -> None:
    """Say something on rank zero that is no trouble."""
    from lightning_utilities.core.rank_zero import rank_zero_info

    rank_zero_info(message)


def refuse_unsupported(trainer: Trainer, config: Config) -> None:
    """Refuse strategies under which gradients are hidden, or sharded in a way that cannot be added up.

    Raises:
        ValueError: If no engine serves the strategy, or its engine refuses its options; or it accumulates by itself,
            and every backward pass is to be observed.
    """
    engines.check_strategy(trainer.strategy)
    if config.sample_at == "backward" and ask(trainer.strategy, "handles_gradient_accumulation") is True:
        rule = '"step" where the strategy accumulates gradients by itself'
        raise refuse("sample_at", rule, config.sample_at, 'use sample_at="step"')


def refuse_clipping_twice(host: LightningHost, config: Config) -> None:
    """Refuse to clip where the Trainer does so itself, unless both is wanted.

    Raises:
        ValueError: If both would clip, and ``compose_clipping`` is not set.
    """
    if config.settings.policies and host.own_clipping() is not None and not config.compose_clipping:
        rule = "None where the Trainer clips by its own `gradient_clip_val`"
        cure = "leave one of them out, or set compose_clipping=True to clip twice, GradWatch first"
        raise refuse("auto_clip", rule, list(config.settings.policies), cure)


def callbacks(trainer: Trainer) -> list[Any]:
    """The Trainer's callbacks."""
    return list(trainer.callbacks)  # type: ignore[union-attr]


def set_callbacks(trainer: Trainer, chosen: list[Any]) -> None:
    """Let the Trainer call these callbacks from now on; a list that the caller has made stays as it is."""
    trainer.callbacks = chosen  # type: ignore[union-attr]


def is_fitting(trainer: Trainer | None) -> bool:
    """Whether a ``fit`` is under way."""
    state = ask(trainer, "state")
    return bool(ask(state, "fn") == "fit" and ask(state, "status") == "running")


def _drawing(loader: object) -> dict[str, object]:
    sampler = ask(loader, "sampler")
    known = {name: ask(sampler, name) for name in ("seed", "shuffle", "num_replicas", "drop_last")}
    plain = {name: value for name, value in known.items() if isinstance(value, (int, float, str))}
    facts = {name: ask(loader, name) for name in ("batch_size", "num_workers")}
    facts = {name: value if isinstance(value, (int, float, str)) else None for name, value in facts.items()}
    return {**facts, "sampler": None if sampler is None else type(sampler).__name__, **plain}


def _has_own(actor: object, hook: str) -> bool:
    """Whether somebody has written a hook, for the class or for this one alone, as ``LambdaCallback`` takes it."""
    return hook in own_attributes(actor) or any(hook in vars(base) for base in _own_classes(actor))


def builds_layers_later(pl_module: LightningModule) -> bool:
    """Whether layers may be made in ``configure_model`` or ``setup``, which come after our own ``setup``."""
    return any(hook in vars(base) for hook in ("configure_model", "setup") for base in _own_classes(pl_module))


def _own_classes(actor: object) -> list[type]:
    """The classes of a model or a callback that are not Lightning's."""
    return [
        base for base in type(actor).__mro__ if base.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")
    ]


def known_metrics(trainer: Trainer, kind: str) -> dict[str, Any]:
    """Lightning's own dict behind a property of the Trainer, to be changed in place.

    The property would first compute every metric that the user has logged: it may raise, wait for other ranks, or take
    a mean before its time.
    """
    known = getattr(getattr(trainer, "_logger_connector", None), f"_{kind}", None)
    return known if isinstance(known, dict) else getattr(trainer, kind)
