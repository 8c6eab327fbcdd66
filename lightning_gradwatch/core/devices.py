"""Copies between the host and a device: the host waits for what it is to read, and for nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


def need_not_wait(device: torch.device) -> bool:
    """Whether numbers may be used on a device before they are there: a host would read what has not come yet."""
    return device.type != "cpu"


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on a device, which the host does not wait for."""
    ready = numbers.pin_memory() if device.type == "cuda" else numbers
    return ready.to(device, non_blocking=need_not_wait(device))
