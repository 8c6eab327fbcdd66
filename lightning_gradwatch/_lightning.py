"""Every question to Lightning, and the only home of its private names; both of its namespaces are served alike."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_gradwatch.core._guard import attempt, is_the_users
from lightning_gradwatch.core.modules import facts_of

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

_UNKNOWN = object()
_RIGHT = {"SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"}
_WRONG = {"DeepSpeedStrategy", "FSDPStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"}


class GradWatchWarning(UserWarning):
    """What GradWatch says about a run: an alert, or trouble of its own."""


def warn(message: str) -> None:
    """Warn once, on rank zero; what cannot be a warning goes to the log, so that nothing of the user's fails."""
    from lightning_utilities.core.rank_zero import rank_zero_warn

    try:
        rank_zero_warn(message, category=GradWatchWarning, stacklevel=7)
    except Exception as failure:  # warnings may be errors, and without Lightning nobody knows the rank
        if is_the_users(failure):
            raise
        attempt(lambda: logging.getLogger("lightning_gradwatch").warning(message))


def inform(message: str) -> None:
    """Say something on rank zero that is no trouble."""
    from lightning_utilities.core.rank_zero import rank_zero_info

    rank_zero_info(message)


def refuse_unsupported(trainer: Trainer) -> None:
    """Refuse strategies under which gradients are hidden, or sharded in a way that cannot be added up.

    Raises:
        ValueError: For any strategy but a single device, DDP, and FSDP2 or tensor parallelism (ModelParallelStrategy).
    """
    strategy = type(trainer.strategy)
    known = [base.__name__ for base in strategy.__mro__ if base.__name__ in _RIGHT | _WRONG]
    if not known or known[0] in _WRONG:
        raise ValueError(
            "GradWatch: the Trainer's `strategy` must be a single device, DDP or ModelParallelStrategy (FSDP2, tensor "
            f"parallelism), but {strategy.__name__} came, which hides the gradients or holds shards of which nobody "
            'knows the whole: their norms would be wrong. To cure it: train with strategy="ddp" or, where the model '
            "does not fit, with ModelParallelStrategy and fully_shard, or without GradWatch."
        )


def _ask(owner: object, name: str, default: Any = None) -> Any:
    """An attribute of something that users may have written: what cannot be had is not known, and nothing fails."""
    try:
        return getattr(owner, name, default)
    except Exception as failure:
        if is_the_users(failure):
            raise
        return default


def _call(owner: object, name: str) -> Any:
    """What such a method returns, without arguments; None if it cannot be had."""
    try:
        return getattr(owner, name)()
    except Exception as failure:
        if is_the_users(failure):
            raise
        return None


def callbacks(trainer: Trainer) -> list[Any]:
    """The Trainer's callbacks."""
    return list(trainer.callbacks)  # type: ignore[union-attr]


def set_callbacks(trainer: Trainer, chosen: list[Any]) -> None:
    """Let the Trainer call these callbacks from now on; a list that the caller has made stays as it is."""
    trainer.callbacks = chosen  # type: ignore[union-attr]


def is_fitting(trainer: Trainer | None) -> bool:
    """Whether a ``fit`` is under way."""
    state = _ask(trainer, "state")
    return bool(_ask(state, "fn") == "fit" and _ask(state, "status") == "running")


def log_dir(trainer: Trainer) -> str | None:
    """Directory of the run in the first logger, for files of our own; meant for rank zero.

    None if there is none, or none that is a path, or if it is a URL: what we write goes to local files.
    """
    place = place_of_run(trainer)
    return None if place is None or is_url(place) else place


def is_url(place: str) -> bool:
    """Whether it is the address of something that is no local directory, such as ``s3://bucket/logs``."""
    return "://" in place


def place_of_run(trainer: Trainer) -> str | None:
    """Where the first logger keeps the run, be it a directory or a URL; None if it does not say; for rank zero."""
    if not trainer.loggers or is_dev_run(trainer):
        return None
    logger = trainer.loggers[0]
    if (own := _path(_ask(logger, "log_dir"))) != "":
        return own
    if not (root := _path(_ask(logger, "save_dir"))):
        return None
    version = _ask(logger, "version", _UNKNOWN)
    parts = [root, _path(_ask(logger, "name", _UNKNOWN)), str(version) if isinstance(version, int) else _path(version)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return "/".join(part.strip("/") for part in known if part) if is_url(root) else str(Path(*known))


def _path(part: object) -> str | None:
    """A path, or a part of one, as text: empty for None, and None for any other object, whose ``str`` is no path."""
    return "" if part is None else str(part) if isinstance(part, (str, PurePath)) else None


def run_name(trainer: Trainer) -> str:
    """What the first logger calls the run; meant for rank zero."""
    place = place_of_run(trainer)
    return PurePath(place).name if place else "a run without a logger"


def checkpoint_dir(trainer: Trainer) -> str:
    """Where Lightning itself puts checkpoints unless told otherwise; meant for rank zero."""
    return os.path.join(place_of_run(trainer) or trainer.default_root_dir, "checkpoints")


def num_ranks(trainer: Trainer) -> int:
    """Number of processes that train together."""
    return int(trainer.world_size)


def broadcast(trainer: Trainer, value: T) -> T:
    """What rank zero has; all ranks must call this together."""
    told: T = trainer.strategy.broadcast(value)
    return told


def stop(trainer: Trainer) -> None:
    """End training after the present batch, but not before ``min_steps`` and ``min_epochs``."""
    trainer.should_stop = True


def save_checkpoint(trainer: Trainer, path: str) -> None:
    """Save a checkpoint; all ranks must call this together, and none is left waiting if the file cannot be written."""
    try:
        trainer.save_checkpoint(path)
    except OSError:
        if num_ranks(trainer) > 1:
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
        raise


def show_in_progress_bar(trainer: Trainer, name: str, text: str | None) -> None:
    """Show a number beside the progress bar; None takes it away."""
    shown = _known_metrics(trainer, "progress_bar_metrics")
    if text is None:
        shown.pop(name, None)
    else:
        shown[name] = text


def about_batches(trainer: Trainer) -> list[dict[str, Any]]:
    """How each of the training data loaders draws its batches."""
    loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
    return [_drawing(loader) for loader in loaders]


def _drawing(loader: Any) -> dict[str, Any]:
    sampler = _ask(loader, "sampler")
    known = {name: _ask(sampler, name) for name in ("seed", "shuffle", "num_replicas", "drop_last")}
    plain = {name: value for name, value in known.items() if isinstance(value, (int, float, str))}
    facts = {name: _ask(loader, name) for name in ("batch_size", "num_workers")}
    facts = {name: value if isinstance(value, (int, float, str)) else None for name, value in facts.items()}
    return {**facts, "sampler": None if sampler is None else type(sampler).__name__, **plain}


def x_axis(trainer: Trainer) -> int:
    """The step under which Lightning itself logs the coming optimizer step: batches that stepped so far."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def clips_gradients(trainer: Trainer) -> bool:
    """Whether the Trainer itself clips gradients."""
    return bool(getattr(trainer, "gradient_clip_val", None))


def own_clipping(trainer: Trainer) -> tuple[float, bool] | None:
    """What the Trainer itself clips at, and whether by value instead of by norm; None if it does not clip."""
    at = getattr(trainer, "gradient_clip_val", None)
    by = str(getattr(trainer, "gradient_clip_algorithm", None) or "norm")
    return (float(at), by.lower().endswith("value")) if at else None


def num_log_points(trainer: Trainer, every_n_steps: int | None, with_coming_step: bool = True) -> int:
    """How many times Lightning's loggers were due by now, the coming step included.

    Args:
        trainer: The Trainer.
        every_n_steps: Steps between two points; None for the Trainer's own cadence (0: never).
        with_coming_step: Whether the coming step counts.
    """
    every = getattr(trainer, "log_every_n_steps", 0) if every_n_steps is None else every_n_steps
    return (x_axis(trainer) + with_coming_step) // every if every else 0


def num_finished_steps(trainer: Trainer) -> int:
    """Optimizer steps that have ended, those of all optimizers together; evaluations within a step do not count."""
    return int(trainer.global_step)


def steps_once_per_batch(trainer: Trainer) -> bool:
    """Whether Lightning itself steps, with optimizers that evaluate a step once."""
    is_automatic = bool(trainer.lightning_module.automatic_optimization)
    return is_automatic and not any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers)


def completes_a_step(trainer: Trainer) -> bool:
    """Whether the present backward pass is the last one before the optimizer steps."""
    return not trainer.fit_loop._should_accumulate()


def loss_scale(trainer: Trainer) -> Tensor | None:
    """Factor of the loss scaler, shape ``()``, without a host sync; None without a scaler."""
    scaler = _ask(trainer.precision_plugin, "scaler")
    if scaler is None or _call(scaler, "is_enabled") is not True:
        return None
    scale = _ask(scaler, "_scale")
    if isinstance(scale, Tensor):
        return scale
    number = _call(scaler, "get_scale")
    return torch.tensor(number, device="cpu") if isinstance(number, (int, float)) else None


def mixed_precision(trainer: Trainer) -> torch.dtype | None:
    """The dtype under autocast; None for no mixed precision."""
    names = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return names.get(str(_ask(trainer.precision_plugin, "precision")))


def steps_only_with_a_loss(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether Lightning takes no step, and leaves the loss scale in the gradients, if ``training_step`` has no loss."""
    return bool(pl_module.automatic_optimization) and loss_scale(trainer) is not None


def still_scaled(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether a loss scaler is at work that has not yet unscaled this optimizer's gradients in the present step."""
    if loss_scale(trainer) is None:
        return False
    states = _ask(_ask(trainer.precision_plugin, "scaler"), "_per_optimizer_states")
    state = states.get(id(optimizer)) if isinstance(states, dict) else None
    stage = state.get("stage") if isinstance(state, dict) else None
    return bool(_ask(stage, "name", "READY") == "READY")


class _HeardClipping:
    """``clip_gradients`` of a precision plugin, of whose calls somebody hears first.

    A copy or a pickle of the plugin has the plain one.
    """

    def __init__(self, plugin: Any, trainer: Trainer, call: Callable[[Optimizer], None]) -> None:
        self._plain, self._own = plugin.clip_gradients, _own_attributes(plugin).get("clip_gradients")
        self._hears: tuple[Trainer, Callable[[Optimizer], None]] | None = (trainer, call)

    def __call__(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if self._hears is not None:
            trainer, call = self._hears
            wrapped = _ask(optimizer, "optimizer")  # of Lightning's own wrapper
            for known in trainer.optimizers:
                if known is optimizer or known is wrapped:
                    call(known)
        return self._plain(optimizer, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._plain,)

    def stop(self) -> None:
        """Hear of nothing from now on, where somebody else stands above."""
        self._hears = None

    def beneath(self) -> Any:
        """What the plugin had as its own before, without others of ours that have stopped; None for nothing."""
        own = self._own
        return own.beneath() if isinstance(own, _HeardClipping) and own._hears is None else own


def _same(given: T) -> T:
    return given


def before_clipping_by_hand(trainer: Trainer, call: Callable[[Optimizer], None]) -> Callable[[], None]:
    """Hear of each ``self.clip_gradients(...)`` of a LightningModule in manual optimization before it clips.

    Args:
        trainer: The Trainer.
        call: Called with the optimizer whose gradients are about to be clipped.

    Returns:
        What undoes it. Where others have wrapped ours since, it stays below theirs, and hears of nothing any more.
    """
    plugin: Any = trainer.precision_plugin
    heard = _HeardClipping(plugin, trainer, call)
    attempt(lambda: setattr(plugin, "clip_gradients", heard))  # a plugin may refuse it

    def undo() -> None:
        heard.stop()
        if _own_attributes(plugin).get("clip_gradients") is heard:
            del plugin.clip_gradients
            if (beneath := heard.beneath()) is not None:
                plugin.clip_gradients = beneath

    return undo


def _own_attributes(owner: object) -> dict[str, Any]:
    known = _ask(owner, "__dict__")
    return known if isinstance(known, dict) else {}


def is_manual(pl_module: LightningModule) -> bool:
    """Whether the LightningModule itself calls backward and step."""
    return not pl_module.automatic_optimization


def may_change_gradients(trainer: Trainer, pl_module: LightningModule, watch: object) -> bool:
    """Whether the user's own code runs between the callback's look after the backward pass and that before the step.

    Lightning calls a hook of the callbacks one by one, and then that of the model.
    """
    everyone = callbacks(trainer)
    place = next((place for place, callback in enumerate(everyone) if callback is watch), len(everyone))
    after_backward = [*everyone[place + 1 :], pl_module]
    return (
        is_manual(pl_module)
        or any(_has_own(actor, "on_after_backward") for actor in after_backward)
        or any(_has_own(callback, "on_before_optimizer_step") for callback in everyone[:place])
    )


def _has_own(actor: object, hook: str) -> bool:
    """Whether somebody has written a hook, for the class or for this one alone, as ``LambdaCallback`` takes it."""
    return hook in _own_attributes(actor) or any(hook in vars(base) for base in _own_classes(actor))


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether gradients still carry the loss scale when the optimizer's step begins (fused optimizers)."""
    return _ask(optimizer, "_step_supports_amp_scaling") is True


def accumulated_batches(trainer: Trainer) -> int:
    """The number by which Lightning has divided the loss."""
    return int(trainer.accumulate_grad_batches)


def builds_layers_later(pl_module: LightningModule) -> bool:
    """Whether layers may be made in ``configure_model`` or ``setup``, which come after our own ``setup``."""
    return any(hook in vars(base) for hook in ("configure_model", "setup") for base in _own_classes(pl_module))


def _own_classes(actor: object) -> list[type]:
    """The classes of a model or a callback that are not Lightning's."""
    return [
        base for base in type(actor).__mro__ if base.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")
    ]


def is_compiled(pl_module: LightningModule) -> bool:
    """Whether the whole LightningModule was given to the Trainer through torch.compile."""
    return facts_of(pl_module).get("_compiler_ctx") is not None


def optimizer_names(optimizers: Iterable[Optimizer]) -> list[str]:
    """Class names, numbered from the second of a kind, as ``LearningRateMonitor`` does; ``""`` for a single one."""
    optimizers = list(optimizers)
    if len(optimizers) == 1:
        return [""]
    names: list[str] = []
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        numbered = itertools.chain([kind], (f"{kind}-{number}" for number in itertools.count(1)))
        names.append(next(name for name in numbered if name not in names))
    return names


def set_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Make numbers known to ``EarlyStopping``, ``ModelCheckpoint`` and the caller of ``fit``."""
    known = _known_metrics(trainer, "callback_metrics")
    for name, value in metrics.items():
        known[name] = torch.full((), value, device="cpu")


def _known_metrics(trainer: Trainer, kind: str) -> dict[str, Any]:
    """Lightning's own dict behind a property of the Trainer, to be changed in place.

    The property would first compute every metric that the user has logged: it may raise, wait for other ranks, or take
    a mean before its time.
    """
    known = getattr(getattr(trainer, "_logger_connector", None), f"_{kind}", None)
    return known if isinstance(known, dict) else getattr(trainer, kind)


def as_on_rank_zero(trainer: Trainer, number: int) -> int:
    """What rank zero says; all ranks must call this together."""
    return int(trainer.strategy.broadcast(number))


def loggers(trainer: Trainer) -> list[Any]:
    """The Trainer's loggers on rank zero; none on other ranks and in a ``fast_dev_run``."""
    return list(trainer.loggers) if trainer.is_global_zero and not is_dev_run(trainer) else []


def tag_prefix(logger: Any) -> str:
    """What a logger puts before the tags of its metrics, such as ``TensorBoardLogger(prefix=...)``."""
    prefix, mark = _ask(logger, "_prefix"), _ask(logger, "LOGGER_JOIN_CHAR")
    return f"{prefix}{mark if isinstance(mark, str) else '-'}" if isinstance(prefix, str) and prefix else ""


def is_dev_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
