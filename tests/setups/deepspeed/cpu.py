"""DeepSpeed on the CPU: each class undoes one check that asks for a GPU, and changes nothing else."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import lightning.pytorch.strategies.deepspeed as home
import torch
from lightning.pytorch.accelerators import CPUAccelerator

# Its op for shared memory would be compiled at first use.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


class CPUStrategy(home.DeepSpeedStrategy):
    """Lightning asks for CUDA and for the indices of devices."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)

    def setup_environment(self) -> None:
        wanted: Any = home
        accelerator, wanted.CUDAAccelerator = wanted.CUDAAccelerator, CPUAccelerator
        check, wanted._validate_device_index_selection = wanted._validate_device_index_selection, lambda devices: None
        try:
            super().setup_environment()
        finally:
            wanted.CUDAAccelerator, wanted._validate_device_index_selection = accelerator, check


def pretend_float16() -> None:
    """DeepSpeed lets no CPU of another make train in float16; torch can."""
    accelerator = type(deepspeed.accelerator.get_accelerator())
    accelerator.is_fp16_supported = lambda self: True
    accelerator.supported_dtypes = lambda self: [torch.float, torch.half, torch.bfloat16]
