"""The way out of what a user has put around the forward pass, so that nothing of ours is computed in there.

Modes see, count, replace or refuse operators (selective activation checkpointing keeps the results of some by their
place among all), and so do subclasses of tensors with their ``__torch_function__``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.utils._python_dispatch
from torch import Tensor

without_functions: Callable[[], AbstractContextManager[object]] = torch._C.DisableTorchFunction
"""A context in which no function mode is asked, such as that of ``torch.set_default_device``, and no subclass."""
num_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
without_dispatch_modes: Callable[[], AbstractContextManager[object]] = getattr(
    torch.utils._python_dispatch, "_disable_current_modes", nullcontext
)
is_traced: Callable[[], object] = torch._C._get_tracing_state
"""Whether ``torch.jit.trace`` writes down what is computed."""
FakeTensor: type | tuple[()] = getattr(torch._subclasses, "FakeTensor", ())
is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is one of ``torch.func``'s own."""
is_batched: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)
"""Whether a gradient stands for many at once, as with ``is_grads_batched=True``."""
