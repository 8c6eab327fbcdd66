"""Hooks that a module calls, and that nobody who copies, saves or rewrites the module sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.modules import facts_of

Hook = TypeVar("Hook", bound=Callable[..., object])
Entries = OrderedDict[int, object]
"""A module's hooks, or marks of them, by the number that torch gives to each."""
_OURS: set[int] = set()
_VEIL = ("copy", "values", "__reduce_ex__")
"""What copies, files (``__reduce_ex__``), torch.jit, torch.ao (``values``) and torch.export (``copy``) read hooks by;
the call of a module reads ``items``."""


class ModuleHooks:
    """Hooks of ours on modules, hung and taken down together.

    It does what ``register_forward_hook`` and ``remove`` do, twenty times as fast, and behind a veil: while one of ours
    is there, ``copy.deepcopy``, ``pickle`` and ``torch.jit.script`` find the hooks of others alone. The dict of hooks
    stays the same object, to which the handles of others refer.

    Attributes:
        hung: Where hooks of ours are now.
    """

    def __init__(self) -> None:
        self._key = RemovableHandle(OrderedDict()).id  # torch gives no number twice
        self._veiled: dict[int, Entries] = {}
        self.hung: list[Entries] = []
        _OURS.add(self._key)

    def hang(self, hooks: Iterable[tuple[nn.Module, Hook]], before: bool = False) -> list[tuple[Hook, Exception]]:
        """Let modules call hooks; a module that torch has not made ready for hooks calls none.

        Args:
            hooks: Modules, each with what to call with it, its arguments, its keyword arguments and its output, as for
                ``register_forward_hook(hook, with_kwargs=True)``. They are the same kind of hook at every step:
                torch.compile would compile a function anew for another.
            before: Whether they are called before ``forward``, without an output.

        Returns:
            The hooks that a module has refused, each with what it said.
        """
        refused = []
        kind = "_forward_pre_hooks" if before else "_forward_hooks"
        kinds = (kind, f"{kind}_with_kwargs")
        for module, hook in hooks:
            own = module.__dict__
            try:
                for name in kinds:
                    entries: Any = own.get(name)
                    if id(entries) not in self._veiled:
                        if not isinstance(entries, OrderedDict):  # of a plain dict torch makes no use
                            continue
                        _veil(entries)
                        self._veiled[id(entries)] = entries
                    self.hung.append(entries)
                    entries[self._key] = hook  # as a mark any value will do
            except Exception as failure:  # the user's own kind of dict
                if is_the_users(failure):
                    raise
                refused.append((hook, failure))
        return refused

    def take_down(self) -> None:
        """Remove every hook. The veils stay for the next ones: without a hook behind them they hide nothing."""
        hung, self.hung = self.hung, []
        for entries in hung:
            try:
                if self._key in entries:
                    del entries[self._key]
            except Exception as failure:  # the user's own kind of dict; a hook that is not hung does nothing
                if is_the_users(failure):
                    raise

    def close(self) -> None:
        """Remove every hook and every veil."""
        self.take_down()
        for entries in self._veiled.values():
            _unveil(entries)
        self._veiled = {}

    def are_alone(self, module: nn.Module) -> bool:
        """Whether no hook of others is called with what a module is given or with its gradients."""
        own = facts_of(module)
        kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
        others = any(key not in _OURS for kind in kinds for key in own.get(kind) or ())
        return not others and not any(getattr(nn.modules.module, f"_global{kind}") for kind in kinds)


def _veil(entries: Entries) -> None:
    """Let a dict of hooks answer as if ours were not in it, wherever it is not called from a module.

    These attributes of the one object come before the methods of its class; the language itself asks the object for
    ``__reduce_ex__`` when it is copied or saved.
    """

    def others() -> Entries:
        return OrderedDict((key, hook) for key, hook in list(entries.items()) if key not in _OURS)

    veil = entries.__dict__
    veil["_num_veils"] = veil.get("_num_veils", 0) + 1  # one by each set of hooks
    veil["copy"] = others
    veil["values"] = lambda: others().values()
    veil["__reduce_ex__"] = lambda protocol: others().__reduce_ex__(protocol)


def _unveil(entries: Entries) -> None:
    veil = entries.__dict__
    veil["_num_veils"] -= 1
    if not veil["_num_veils"]:
        for name in ("_num_veils", *_VEIL):
            del veil[name]
