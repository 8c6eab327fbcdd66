"""What we compute is computed alone, whatever the user's code has set for itself.

A gradient may ask for a gradient (``create_graph=True``); a default device, a mode that counts or keeps operators, or a
subclass that overrides functions is meant for the user's own tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from lightning_gradwatch.core import modes

P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T]) -> Callable[P, T]:
    """Do some work without gradients, default device, modes and overridden functions of others."""

    @functools.wraps(work)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        with modes.without_functions():
            records = torch.is_grad_enabled()
            torch._C._set_grad_enabled(False)
            try:
                if not modes.num_dispatch_modes():
                    return work(*args, **kwargs)
                with modes.without_dispatch_modes():
                    return work(*args, **kwargs)
            finally:
                torch._C._set_grad_enabled(records)

    return guarded
