"""Counts torch operators, those of GradWatch among them, which it hides from the modes of its users."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.core import modes


class Operators(TorchDispatchMode):
    """Counts the operators that run within it.

    Attributes:
        seen: How often each ran, by its name, such as ``aten::add``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> Any:
        """Begin to count; GradWatch takes no notice of modes meanwhile."""
        self._num_modes, modes.num_dispatch_modes = modes.num_dispatch_modes, lambda: 0
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *failure: Any) -> None:
        """Stop."""
        modes.num_dispatch_modes = self._num_modes
        super().__exit__(*failure)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one and let it run."""
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))
