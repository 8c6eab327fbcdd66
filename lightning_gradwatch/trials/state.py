"""What a trial must leave as it was: random numbers, switches of torch, gradients and buffers of the user's model."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

RandomStates: TypeAlias = Mapping[str, Tensor]
"""States of torch's generators, by the names of their devices."""


def random_states(device: torch.device) -> RandomStates:
    """Those from which a training step draws on the CPU and on a device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "xpu"):
        states[str(device)] = getattr(torch, device.type).get_rng_state(device)
    return states


def set_random_states(states: RandomStates) -> None:
    """Draw again from there."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            getattr(torch, torch.device(name).type).set_rng_state(state, torch.device(name))


def seed_everything(seed: int) -> None:
    """Seed every generator that a training step may draw from."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block after which everything is as before, bit for bit, however it ends.

    Args:
        model: The user's model; the block computes with copies of it. Its gradients are out of reach meanwhile.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone(), b._version) for b in model.buffers()]
    switches = []
    for get, put in _switches():
        with suppress(RuntimeError):  # torch does not tell some where its old and new interfaces have been mixed
            switches.append((put, get()))
    try:
        for parameter, _, _ in parameters:  # a loss that is not computed with the copy must not add to them
            parameter.grad = None
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for put, value in switches:
            put(value)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, grad, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for buffer, before, version in buffers:
            if buffer._version != version or not _is_same(buffer, before):  # batch normalisation counts no version
                buffer.detach().copy_(before)


def _is_same(buffer: Tensor, before: Tensor) -> bool:
    return buffer.layout is not torch.strided or torch.equal(buffer, before)


def _switches() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and to set each global state."""
    yield random.getstate, random.setstate
    if "numpy" in sys.modules:
        numpy_random = sys.modules["numpy"].random
        yield numpy_random.get_state, numpy_random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_num_threads, torch.set_num_threads
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    yield _deterministic, _set_deterministic
    yield torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    for flags, names in (
        (torch.backends.cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
        (torch.backends.cuda.matmul, ("allow_fp16_reduced_precision_reduction",)),
    ):
        for name in names:
            yield (lambda f=flags, n=name: getattr(f, n)), (lambda value, f=flags, n=name: setattr(f, n, value))  # type: ignore[misc]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
