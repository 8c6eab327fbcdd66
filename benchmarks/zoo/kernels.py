"""Ways to compute the same training: threads, and kernels that sum in another order, as another processor would."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

_ORDER = ("default", "avx2", "avx512")
"""What torch compiles its own kernels for, the oldest first."""
_COMPATIBLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Matrix products follow ``MKL_CBWR`` and ``ONEDNN_MAX_CPU_ISA``, torch's own kernels the first variable."""


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute.

    Attributes:
        kernels: ``default``, ``avx2`` or ``avx512`` for torch's own kernels with the processor's matrix products;
            ``compatible`` for the oldest of both.
        threads: Number of threads.
    """

    kernels: str
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a process must have before it imports torch."""
        kernels = _COMPATIBLE if self.kernels == "compatible" else {"ATEN_CPU_CAPABILITY": self.kernels}
        return {**kernels, "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}

    def __str__(self) -> str:
        """Both in few words."""
        return f"{self.kernels}, {self.threads} thread{'s' * (self.threads > 1)}"


def all_here() -> list[Arithmetic]:
    """Every way that this processor has, with one thread and with two."""
    newest = torch.backends.cpu.get_cpu_capability().lower()
    known = _ORDER[: _ORDER.index(newest) + 1] if newest in _ORDER else ("default",)
    return [Arithmetic(*pair) for pair in itertools.product((*known, "compatible"), (1, 2))]
