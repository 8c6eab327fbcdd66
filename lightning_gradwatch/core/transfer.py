"""One copy from the device to the host: asynchronous where the device allows it, read one copy later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

Label = TypeVar("Label")


class Transfer(Generic[Label]):
    """Carries named tensors to the host in one copy, together with a label that says what they are.

    On a CUDA device the copy goes to pinned memory and is waited for only when the next one is sent; elsewhere it
    arrives at once, on a CPU without being packed.
    """

    def __init__(self) -> None:
        self._under_way: tuple[Label, dict[str, torch.Size], Tensor, torch.cuda.Event | None] | None = None

    def send(self, label: Label, tensors: Mapping[str, Tensor]) -> list[tuple[Label, dict[str, Tensor]]]:
        """Start the copy.

        Args:
            label: Given back with the tensors.
            tensors: Float32 tensors of any shape on one device.

        Returns:
            What has arrived by now, oldest first.
        """
        arrived = self.receive()
        if all(tensor.device.type == "cpu" for tensor in tensors.values()):
            return [*arrived, (label, {name: tensor.clone() for name, tensor in tensors.items()})]
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        packed = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        if packed.device.type != "cuda":
            self._under_way = (label, shapes, packed.cpu(), None)
            return arrived + self.receive()
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(packed.device))
        self._under_way = (label, shapes, host, event)
        return arrived

    def receive(self) -> list[tuple[Label, dict[str, Tensor]]]:
        """Wait for the copy under way, if there is one, and return it."""
        if self._under_way is None:
            return []
        label, shapes, host, event = self._under_way
        self._under_way = None
        if event is not None:
            event.synchronize()
        parts = host.split([shape.numel() for shape in shapes.values()])
        return [(label, {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)})]
