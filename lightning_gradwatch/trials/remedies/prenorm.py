"""Normalisation before each residual branch instead of after the sum.

Source: Xiong et al., ICML 2020.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import Call, Trace, first_float, kind_of, trace

_STOCK = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def _apply(trial_model: TrialModel) -> None:
    seen = trace(trial_model)
    # find blocks that normalise a sum: torch's own, and any others by what they compute
    stock: list[Any] = [m for m in seen.ran(_STOCK) if not m.norm_first]
    inside = {part for layer in stock for part in layer.modules()}
    branches: list[tuple[Any, Any, Any]] = [
        (norm, branch, skip)
        for norm in seen.ran(_NORMS)
        if norm not in inside
        for branch, skip in _branches_before(seen, norm)
    ]
    if not stock and not branches:
        raise CannotApply("no block recognised that normalises the sum of its input and a branch")
    # behind the last block the sum needs a norm of its own
    skips = {skip for _, _, skip in branches}
    branch_of = {norm: branch for norm, branch, _ in branches}
    final = {norm: {_needs_norm(seen, call, skips) for call in seen.of(norm)} for norm in branch_of}
    if any(len(answers) > 1 for answers in final.values()):
        raise CannotApply("a block that comes after itself")
    starts = {call.before for layer in stock for call in seen.of(layer)}
    last = [m for m in stock if any(_needs_norm(seen, call, starts) for call in seen.of(m))]
    # torch's own blocks know both orders
    for layer in stock:
        layer.norm_first = True
    for encoder in trial_model.model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False  # its fast path knows post-norm only
    for layer in last:
        layer.final_norm = deepcopy(layer.norm2)
        layer.register_forward_hook(_through_final_norm)
    # the others: each norm steps aside, and its branch gets it first
    for norm, branch in branch_of.items():
        if final[norm] == {True}:
            norm.final = deepcopy(norm)
        vars(norm)["forward"] = norm.final.forward if hasattr(norm, "final") else _pass
        vars(branch)["pre_norm"] = norm  # registered where it was, under its own name
        branch.register_forward_pre_hook(_through_pre_norm, with_kwargs=True)


def _pass(x: Tensor) -> Tensor:
    return x


def _branches_before(seen: Trace, norm: nn.Module) -> list[tuple[Any, Any]]:
    """For each call of a norm the module that starts the branch whose sum with its input is normalised, and the skip.

    Nothing unless it is one and the same module throughout.
    """
    calls = seen.of(norm)
    found = [_branch_before(seen, call) for call in calls]
    branch = found[0][0]
    if branch is None or any(module is not branch for module, _ in found) or len(seen.of(branch)) != len(calls):
        return []
    return found


def _branch_before(seen: Trace, call: Call) -> tuple[Any, Any]:
    total = call.before
    if total is None or kind_of(total) != "add":
        return None, None
    operands = [node for node, _ in total.next_functions]
    for skip, branch in (operands, operands[::-1]):
        starts = [
            other.module
            for other in seen.calls[: seen.calls.index(call)]
            if other.before is skip is not None and _leads(branch, other.after, skip)
        ]
        if starts and not any(isinstance(m, _NORMS) for m in starts):  # as in a branch that is pre-norm already
            return max(starts, key=lambda m: len(list(m.modules()))), skip
    return None, None


def _leads(node: Any, source: Any, end: Any) -> bool:
    """Whether what ``source`` made reaches ``node``, not going behind ``end``."""
    stack, met = [node], {end, None}
    while stack:
        node = stack.pop()
        if node is source and node is not None:
            return True
        if node not in met:
            met.add(node)
            stack.extend(before for before, _ in node.next_functions)
    return False


def _needs_norm(seen: Trace, call: Call, starts: set[Any]) -> bool:
    """Whether a block is the last one and no normalisation reads it."""
    return call.after not in starts and not any("norm" in kind_of(reader) for reader in seen.readers(call.after))


def _through_pre_norm(module: Any, args: Any, kwargs: Any) -> Any:
    given = first_float((args, kwargs))
    normed = type(module.pre_norm).forward(module.pre_norm, given)
    args = tuple(normed if arg is given else arg for arg in args)
    return args, {name: normed if arg is given else arg for name, arg in kwargs.items()}


def _through_final_norm(module: Any, args: Any, output: Any) -> Any:  # noqa: ARG001
    return module.final_norm(output)


REMEDIES = (
    Remedy(
        "prenorm",
        "pre-norm instead of post-norm blocks",
        "for m in model.modules():\n"
        "    if isinstance(m, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):\n"
        "        m.norm_first = True  # give nn.TransformerEncoder a final norm=nn.LayerNorm(d_model)\n"
        "# in your own blocks: x = x + part(norm(x)) instead of x = norm(x + part(x)), and one norm at the end",
        _apply,
        frozenset({"normalisation_order", "learning_rate"}),
        frozenset({"vanishing", "exploding", "stalled"}),
    ),
)
