"""Everything about a training that a prescription must leave as it was, as bytes that can be compared."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def bits_of(tensor: Tensor | None) -> Any:
    """Identity, version and bytes of a tensor."""
    if tensor is None:
        return None
    stored = io.BytesIO()
    torch.save(tensor.detach().clone(), stored)
    return id(tensor), tensor.data_ptr(), tensor._version, stored.getvalue()


def hooks_of(module: nn.Module) -> Any:
    """Every hook of a module, by identity."""
    return {name: [*map(id, value.values())] for name, value in vars(module).items() if name.endswith("_hooks")}


def snapshot(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Model, optimizer, random numbers and torch's switches."""
    state = {} if optimizer is None else {id(p): {k: bits_of(torch.as_tensor(v)) if not isinstance(v, Tensor)
             else bits_of(v) for k, v in s.items()} for p, s in optimizer.state.items()}  # fmt: skip
    groups = [] if optimizer is None else [
        {k: v if k != "params" else [*map(id, v)] for k, v in g.items()} for g in optimizer.param_groups]  # fmt: skip
    return {
        "parameters": {name: bits_of(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "buffers": {name: bits_of(b) for name, b in model.named_buffers()},
        "grads": {name: bits_of(p.grad) for name, p in model.named_parameters()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "modules": [id(module) for module in model.modules()],
        "hooks": [hooks_of(module) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "optimizer": (state, groups),
        "random": (random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()),
        "switches": (
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.is_anomaly_enabled(),
        ),
    }  # fmt: skip
