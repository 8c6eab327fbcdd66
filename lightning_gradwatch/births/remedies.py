"""What helps against an operation that makes NaN or infinity, one line of code each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.births.words import CASTS, EXPS, SOFTMAXES

_FOR_OPERATIONS = (
    (("div", "true_divide", "addcdiv", "reciprocal"), "a small number in what divides: x / (y + 1e-6)"),
    (
        ("log", "log2", "log10", "log1p", "logit", "xlogy"),
        "a logarithm that never sees 0: torch.log(x.clamp(min=1e-6)), or a fused loss on logits",
    ),
    (
        ("sqrt", "rsqrt", "pow", "norm", "linalg_vector_norm", "std", "var", "_cdist"),
        "a small number under the root, whose slope at 0 is infinite: torch.sqrt(x + 1e-6)",
    ),
    (EXPS, "a limit, x.clamp(max=50).exp(), or torch.logsumexp, which takes the largest away first"),
    (
        (*SOFTMAXES, "softmax", "log_softmax"),
        "no row in which everything is masked: leave such rows out, or let one entry stand",
    ),
    (
        ("nll_loss", "nll_loss2d"),
        "no batch whose labels are all ignored: leave it out, or divide the summed loss by max(count, 1)",
    ),
    (("mean",), "no mean over nothing: x.sum() / max(len(x), 1)"),
    (
        (*CASTS, "copy", "a change of dtype"),
        "bfloat16, which has float32's range, instead of float16; or a smaller number",
    ),
)
"""By the names of operations, without the endings that say that one works in place or forward."""
_FOR_OVERFLOW = "smaller numbers: inputs of mean 0 and deviation 1, normalisation before, or a limit such as x.clamp"
_DERIVATIVE = re.compile(r"in the derivative of ([a-z_ 0-9]+),")
_FOR_OPTIMIZER = "a larger eps in the optimizer, which divides by a second moment of 0 without it"


def remedy_for(birth: Mapping[str, Any]) -> str | None:
    """What helps, in a line; None where the place is all that is known.

    Args:
        birth: Where it was born, as ``Birth.as_dict`` has it.
    """
    if birth["stage"] == "optimizer":
        return _FOR_OPTIMIZER
    if "exceeds the largest" in birth["what"]:
        return _FOR_OVERFLOW
    # a derivative is named by its function, which is what can be changed
    derivative = _DERIVATIVE.search(birth["what"])
    names = [derivative[1]] if derivative else []
    names.append(str(birth["operation"]).removesuffix("_forward").removesuffix("_"))
    return next((remedy for name in names for known, remedy in _FOR_OPERATIONS if name in known), None)
