"""One Callback class for both of Lightning's namespaces, without importing a namespace that is not in use.

``lightning.pytorch`` and ``pytorch_lightning`` share global state: whichever is imported last owns the logger and the
deprecation category of both. So we import neither. Our class takes in a namespace's own Callback as soon as somebody
else has imported that namespace, whichever comes first.
"""

from __future__ import annotations

import importlib.util
import sys
import threading

from lightning_gradwatch.core._guard import attempt

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")

_lock = threading.RLock()  # importing may begin again within itself, in a finalizer or a handler of signals


class _NoNamespace:
    """Stands in until a namespace is in use: Python cannot exchange the base of a class that has ``object`` alone."""


class Callback(_NoNamespace):
    """A callback for the Trainers of each namespace that has been imported."""


class _Onlooker:
    """Is asked for every module that is imported, finds none, and looks whether a namespace has come into use.

    A namespace defines its Callback long before its import is complete, and further modules follow: nobody can hold a
    namespace's Callback and meet a class of ours that is none.
    """

    def find_spec(self, *_: object, **__: object) -> None:
        """Find nothing."""
        attempt(adopt)  # whatever becomes of it, somebody else's import must not fail because of us


def adopt() -> None:
    """Make ``Callback`` a subclass of the Callback of every namespace that is in use."""
    if set(_in_use()) <= set(Callback.__bases__):
        return
    with _lock:
        known = tuple(base for base in Callback.__bases__ if base is not _NoNamespace)
        Callback.__bases__ = (*known, *(base for base in _in_use() if base not in known))


def _in_use() -> list[type]:
    """The Callback of each namespace whose module has run."""
    modules = [sys.modules.get(f"{namespace}.callbacks.callback") for namespace in NAMESPACES]
    return [found for module in modules if isinstance(found := getattr(module, "Callback", None), type)]


def require_one() -> None:
    """Refuse to go on where no namespace is installed.

    Raises:
        ModuleNotFoundError: If neither can be found.
    """
    if not any(_can_be_found(namespace.partition(".")[0]) for namespace in NAMESPACES):
        raise ModuleNotFoundError(
            "GradWatch needs `lightning` or `pytorch-lightning`, and neither is installed. To cure it: "
            "pip install pytorch-lightning."
        )


def _can_be_found(package: str) -> bool:
    """Whether a package is installed or imported; finding it does not import it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False
    except ValueError:  # it has been imported, but not from a file
        return True


require_one()
adopt()
sys.meta_path.insert(0, _Onlooker())  # the others are not asked any more once one has found a module
