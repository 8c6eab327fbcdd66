"""What is known of the place at which NaN or infinite values began."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Stage = Literal["input", "weights", "forward", "loss", "backward", "optimizer"]
_MAX_SAMPLES = 8
_IN_WORDS = {
    "input": "in the batch",
    "weights": "before this step, in the weights",
    "forward": "in the forward pass",
    "loss": "in the loss",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
}


@dataclass(frozen=True)
class Birth:
    """Where NaN or infinite values were born: the first operation that made them out of finite numbers.

    Attributes:
        stage: ``"input"`` for the batch itself, ``"weights"`` for weights that were bad before, ``"forward"``,
            ``"loss"`` (in a loss module, or outside of all modules), ``"backward"`` or ``"optimizer"``.
        module: Path of the module in which it ran, or of the parameter or buffer; ``""`` outside of all modules.
        file: Your file, or that of a library which is neither torch nor Lightning; ``""`` if it is not known.
        line: Line in that file, from 1; of a backward operation the line of its forward one. 0 if it is not known.
        code: The text of that line.
        operation: Name of the operation in torch, such as ``"div"``; ``""`` where it came in from elsewhere.
        what: What happened there, in words.
        num_bad: Elements of its result that are not finite.
        num_elements: Elements of its result.
        samples: Places in the batch, from 0, of the samples that carry it; empty if that cannot be told.
        is_compiled: Whether the module belongs to a compiled one; it is replayed without the compiler.
    """

    stage: Stage
    module: str
    file: str
    line: int
    code: str
    operation: str
    what: str
    num_bad: int
    num_elements: int
    samples: tuple[int, ...] = ()
    is_compiled: bool = False

    def __str__(self) -> str:
        """One or two sentences."""
        where = [_IN_WORDS[self.stage]]
        if self.module:
            where = [f"{'in' if self.stage != 'optimizer' else 'for'} `{self.module}`", *where]
        if self.line:
            where.append(f"{self.file} line {self.line}")
        said = f"born {', '.join(where)}: {self.what}"
        if self.samples:
            named = ", ".join(map(str, self.samples[:_MAX_SAMPLES]))
            more = ", ..." if len(self.samples) > _MAX_SAMPLES else ""
            said += f"; carried by sample{'s' if len(self.samples) > 1 else ''} {named}{more} of the batch"
        return said + (" (in a compiled module, replayed without the compiler)" if self.is_compiled else "")

    def as_dict(self) -> dict[str, Any]:
        """The same as numbers, texts and lists, for JSON."""
        return {**asdict(self), "samples": list(self.samples), "text": str(self)}
