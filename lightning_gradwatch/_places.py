"""Where Lightning's loggers keep a run; all of it is meant for rank zero."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from lightning_gradwatch.asking import ask
from lightning_gradwatch.paths import at, is_url

if TYPE_CHECKING:
    from lightning_gradwatch._lightning import Trainer

_UNKNOWN = object()


def spare_dir(trainer: Trainer) -> str | None:
    """A directory, or a URL, for a run whose loggers do not say where they keep it; None without any logger."""
    if not trainer.loggers or is_dev_run(trainer) or log_dir(trainer) is not None:
        return None
    return str(at(trainer.default_root_dir) / "gradwatch" / time.strftime("%Y-%m-%d_%H-%M-%S"))


def log_dir(trainer: Trainer) -> str | None:
    """Where the leading logger keeps the run, be it a directory or a URL; None if it does not say.

    TensorBoard's leads, so that all of ours lies in one place; else the first one does.
    """
    return None if is_dev_run(trainer) else place_of(trainer.loggers)


def place_of(loggers: Sequence[object]) -> str | None:
    """The same, for whoever has these loggers."""
    return _place(next(filter(_is_of_tensorboard, loggers), loggers[0])) if loggers else None


def _is_of_tensorboard(logger: object) -> bool:
    return any(kind.__name__ == "TensorBoardLogger" for kind in type(logger).__mro__)


def _place(logger: object) -> str | None:
    """Where a logger keeps its run."""
    if (own := _path(ask(logger, "log_dir"))) != "":
        return own
    if not (root := _path(ask(logger, "save_dir"))):
        return None
    version = ask(logger, "version", _UNKNOWN)
    parts = [root, _path(ask(logger, "name", _UNKNOWN)), str(version) if isinstance(version, int) else _path(version)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return "/".join(part.strip("/") for part in known if part) if is_url(root) else str(Path(*known))


def _path(part: object) -> str | None:
    """A path, or a part of one, as text: empty for None, and None for any other object, whose ``str`` is no path."""
    return "" if part is None else str(part) if isinstance(part, (str, PurePath)) else None


def run_name(trainer: Trainer) -> str:
    """What the leading logger calls the run."""
    place = log_dir(trainer)
    return PurePath(place).name if place else "a run without a logger"


def checkpoint_dir(trainer: Trainer) -> str:
    """Where Lightning itself puts checkpoints unless told otherwise."""
    place = _place(trainer.loggers[0]) if trainer.loggers and not is_dev_run(trainer) else None
    return str(at(place or trainer.default_root_dir) / "checkpoints")


def tag_prefix(logger: object) -> str:
    """What a logger puts before the tags of its metrics, such as ``TensorBoardLogger(prefix=...)``."""
    prefix, mark = ask(logger, "_prefix"), ask(logger, "LOGGER_JOIN_CHAR")
    return f"{prefix}{mark if isinstance(mark, str) else '-'}" if isinstance(prefix, str) and prefix else ""


def is_dev_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which leaves nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
