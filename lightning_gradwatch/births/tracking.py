"""Which module, and which line of the user's code, is running, in the forward pass and in the backward pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.births.lines import Line, present_line
from lightning_gradwatch.births.recorder import Where
from lightning_gradwatch.births.records import Stage

_NAMES = {"tocopy": "a change of dtype", "mm": "a matrix product", "addmm": "a linear layer", "bmm": "a matrix product"}
_NUMBERED = re.compile(r"Backward\d*$")


class Tracker:
    """Follows the forward passes of a copy's modules; a node of the graph belongs to the operation that has made it.

    Autograd numbers the nodes of a thread as they are made, and a node keeps its number.

    Args:
        model: The copy.

    Attributes:
        stage: The part of the step that is running where no module is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.stage: Stage = "loss"
        self._stack: list[tuple[str, bool]] = []
        self._made: dict[int, Where] = {}
        names: Mapping[nn.Module, str] = {module: name for name, module in model.named_modules()}
        for module, name in names.items():
            is_loss = type(module).__module__ == "torch.nn.modules.loss" or isinstance(module, nn.modules.loss._Loss)
            module.register_forward_pre_hook(lambda *_, n=name, x=is_loss: self._stack.append((n, x)), prepend=True)
            module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _leave(self) -> None:
        if self._stack:
            self._stack.pop()

    def begin(self, stage: Stage) -> None:
        """Another part of the step begins."""
        self.stage = stage
        self._stack.clear()

    def where(self) -> Where:
        """What is running now."""
        if self.stage == "optimizer":
            return Where("optimizer", "", None)
        node = torch._C._current_autograd_node() if self.stage == "backward" else None
        if node is not None and not self._stack:
            return self._of_node(node)
        name, is_loss = self._stack[-1] if self._stack else ("", True)
        now = Where("loss" if is_loss else "forward", name, present_line())
        self._made[torch._C._autograd._get_sequence_nr() - 1] = now
        return now

    def _of_node(self, node: Any) -> Where:
        """Whose derivative is taken; a backward pass that the user has written has a line of its own."""
        made = self._made.get(node._sequence_nr(), Where("backward", "", None))
        name = _NUMBERED.sub("", node.name().rpartition("::")[2]).lower()
        name = _NAMES.get(name, name)
        return replace(made, stage="backward", line=present_line() or made.line, node=name)


def as_line(line: Line | None) -> tuple[str, int, str]:
    """File, number and text of a line; nothing of none."""
    return ("", 0, "") if line is None else (line.name, line.number, line.code)
