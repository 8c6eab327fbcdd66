"""What an operation did to become NaN or infinite, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LOGS = ("log", "log_", "log2", "log10", "log1p", "xlogy", "logit", "special_entr")
_ROOTS = ("sqrt", "sqrt_", "rsqrt", "rsqrt_", "pow", "pow_", "reciprocal", "reciprocal_")
EXPS = ("exp", "exp_", "exp2", "expm1", "cosh", "sinh")
SOFTMAXES = ("_softmax", "_log_softmax", "_safe_softmax")
_ARCS = ("acos", "asin", "atanh", "acosh", "erfinv")
CASTS = ("_to_copy", "to", "copy_")
_SUMS = ("addmm", "mm", "bmm", "baddbmm", "addmv", "mv", "dot", "convolution", "linear")
_DIVISIONS = ("div", "div_", "true_divide", "addcdiv", "addcdiv_", "fmod", "remainder")


def explain(name: str, inputs: Sequence[Tensor], scalars: Sequence[float], out: Tensor, came_in: bool) -> str:
    """What happened in an operation.

    Args:
        name: Of the operation in torch.
        inputs: The tensors that it was given, as they were before it.
        scalars: The numbers that it was given.
        out: Its result, which is not finite.
        came_in: Whether an input was not finite already.
    """
    numbers = [t.detach() for t in inputs if t.numel() and not t.is_complex()]
    floats = [t for t in numbers if t.is_floating_point()]
    num_bad = int((~out.detach().isfinite()).sum())
    count = f"in {num_bad:,} of {out.numel():,} element{'s' if out.numel() != 1 else ''}"
    said = next((say(numbers, scalars, out) for names, say in _SAYINGS if name in names), "")
    said = said or _in_general(name.strip("_"), out, came_in)
    return f"{said} {count}{_range(floats, came_in)}"


def _range(floats: Sequence[Tensor], came_in: bool) -> str:
    if came_in or not floats:
        return ""
    ends = [f"{t.min().item():.3g} to {t.max().item():.3g}" for t in floats[:2]]
    return f"; its input was finite, {ends[0]}" if len(ends) == 1 else f"; its inputs were finite, {' and '.join(ends)}"


def _division(floats: Sequence[Tensor], scalars: Sequence[float], _: Tensor) -> str:
    if len(floats) > 1:
        above, below = floats[-2], floats[-1]
    elif scalars and floats:
        above, below = floats[0], torch.tensor(float(scalars[0]))
    else:
        return ""
    is_zero = below == 0
    if not bool(is_zero.any()):
        return ""
    return "0 / 0" if bool((is_zero & (above == 0)).any()) else "a division by 0"


def _log(floats: Sequence[Tensor], _: Sequence[float], __: Tensor) -> str:
    low = min((t.min().item() for t in floats), default=math.nan)
    return "the logarithm of 0" if low == 0 else "the logarithm of a negative number" if low < 0 else ""


def _root(floats: Sequence[Tensor], _: Sequence[float], out: Tensor) -> str:
    if not floats:
        return ""
    if bool(out.isnan().any()):
        return "a root of a negative number" if floats[0].min().item() < 0 else ""
    return "one divided by (a root of) 0" if bool((floats[0] == 0).any()) else ""


def _exp(floats: Sequence[Tensor], _: Sequence[float], out: Tensor) -> str:
    if not floats:
        return ""
    limit = math.log(torch.finfo(out.dtype).max)
    return f"exp of {floats[0].max().item():.4g}, where {_plain(out.dtype)} ends at exp of {limit:.3g},"


def _softmax(floats: Sequence[Tensor], _: Sequence[float], __: Tensor) -> str:
    is_masked = bool(floats) and bool((floats[0] == -math.inf).any())
    return "a softmax over rows in which every entry is -inf (masked)" if is_masked else "a softmax"


def _labels(_: Sequence[Tensor], __: Sequence[float], out: Tensor) -> str:
    return "a mean over no labels, since all of them are ignored," if bool(out.isnan().any()) else ""


def _mean(floats: Sequence[Tensor], _: Sequence[float], __: Tensor) -> str:
    return "" if floats else "a mean over nothing"


def _sum_of_infinities(floats: Sequence[Tensor], _: Sequence[float], out: Tensor) -> str:
    return "inf - inf" if bool(out.isnan().any()) and any(bool(t.isinf().any()) for t in floats) else ""


def _product(floats: Sequence[Tensor], _: Sequence[float], out: Tensor) -> str:
    return "0 times infinity" if bool(out.isnan().any()) and any(bool(t.isinf().any()) for t in floats) else ""


def _arc(_: Sequence[Tensor], __: Sequence[float], ___: Tensor) -> str:
    return "an argument outside of the function's domain"


def _cast(floats: Sequence[Tensor], _: Sequence[float], out: Tensor) -> str:
    top = max((t.abs().max().item() for t in floats), default=math.nan)
    return (
        f"a number of {top:.3g} does not fit into {_plain(out.dtype)}, whose largest is {_largest(out.dtype)},"
        if (math.isfinite(top))
        else ""
    )


def _in_general(name: str, out: Tensor, came_in: bool) -> str:
    is_overflow = name in _SUMS and not came_in  # of both signs, which makes NaN
    if bool(out.isnan().any()) and not is_overflow:
        return f"NaN by {name}"
    return f"{name} exceeds the largest number of {_plain(out.dtype)}, {_largest(out.dtype)},"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(dtype: torch.dtype) -> str:
    return f"{torch.finfo(dtype).max:.5g}"


Saying = Callable[[Sequence[Tensor], Sequence[float], Tensor], str]
_SAYINGS: tuple[tuple[tuple[str, ...], Saying], ...] = (
    (_DIVISIONS, _division),
    (_LOGS, _log),
    (_ROOTS, _root),
    (EXPS, _exp),
    (SOFTMAXES, _softmax),
    (("nll_loss_forward", "nll_loss2d_forward"), _labels),
    (("mean",), _mean),
    (("add", "add_", "sub", "sub_", "sum", "cumsum"), _sum_of_infinities),
    (("mul", "mul_", "addcmul", "addcmul_"), _product),
    (_ARCS, _arc),
    (CASTS, _cast),
)
