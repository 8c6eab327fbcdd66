"""What the operations on a gradient's way back are to a reader, by the names that autograd gives its nodes."""

from __future__ import annotations

from typing import Literal

Group = Literal[
    "sigmoid", "tanh", "relu", "activation", "weights", "products", "normalisation", "pooling", "softmax", "attention",
    "recurrence", "loss", "joins", "custom", "compiled", "checkpoint", "other",
]  # fmt: skip
"""``joins`` is what the other branches add where several meet."""
_PRESERVING = frozenset(
    (
        "view", "unsafeview", "reshapealias", "transpose", "t", "permute", "squeeze", "unsqueeze", "clone", "alias",
        "tocopy", "select", "slice", "split", "splitwithsizes", "unbind", "flip",
    )
)  # fmt: skip
_PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "addbmm", "matmul", "linear", "mv", "addmv", "dot"))
_NAMES: tuple[tuple[Group, tuple[str, ...]], ...] = (
    ("sigmoid", ("sigmoid", "hardsigmoid")),
    ("tanh", ("tanh",)),
    ("relu", ("relu", "threshold", "hardtanh", "clamp", "clampmin")),
    ("activation", ("gelu", "silu", "elu", "mish", "softplus", "leakyrelu", "hardswish", "prelu", "glu", "logsigmoid")),
    ("pooling", ("mean", "sum", "amax", "max", "logsumexp")),
    ("loss", ("logsoftmax", "crossentropyloss")),
)
"""Whole names of operations."""
_PARTS: tuple[tuple[Group, tuple[str, ...]], ...] = (
    ("compiled", ("compiledfunction",)),
    ("checkpoint", ("checkpointfunction",)),
    ("attention", ("scaleddotproduct",)),
    ("softmax", ("softmax",)),
    ("loss", ("loss", "binarycrossentropy", "kldiv")),
    ("pooling", ("pool",)),
    ("recurrence", ("rnn", "lstm", "gru")),
)
"""Parts of names, the first that fits."""
_WORDS: dict[Group, tuple[str, str]] = {
    "sigmoid": ("sigmoid", "sigmoids"),
    "tanh": ("tanh", "tanh"),
    "relu": ("ReLU or clamp", "ReLUs"),
    "activation": ("smooth activation", "smooth activations"),
    "weights": ("layer's weights", "layers' weights"),
    "products": ("product of two signals", "products of two signals"),
    "normalisation": ("normalisation layer", "normalisation layers"),
    "pooling": ("pooling or sum", "poolings or sums"),
    "softmax": ("softmax", "softmaxes"),
    "attention": ("attention", "attentions"),
    "recurrence": ("recurrent layer", "recurrent layers"),
    "loss": ("loss function", "steps of the loss function"),
    "joins": ("join of branches", "joins of branches"),
    "custom": ("custom function", "custom functions"),
    "compiled": ("compiled part", "compiled parts"),
    "checkpoint": ("checkpointed part", "checkpointed parts"),
    "other": ("other operation", "other operations"),
}


def plain_name(node_name: str) -> str:
    """The name of an operation, such as ``addmm`` of ``AddmmBackward0``."""
    name = node_name.rpartition("::")[2]
    head, found, tail = name.rpartition("Backward")
    return (head if found and (not tail or tail.isdigit()) else name).lower().replace("_", "")


def preserves(name: str) -> bool:
    """Whether an operation hands the gradient on in another shape or place alone, with the norm that it had."""
    return name in _PRESERVING


def begins_a_signal(name: str) -> bool:
    """Whether an operation makes a signal out of parameters: all that comes after it is part of the signal's way."""
    return name in _PRODUCTS or any(part in name for part in ("conv", "embedding", "rnn", "lstm", "gru", "function"))


def group_of(node_name: str, num_signals: int) -> Group:
    """What an operation is to a reader.

    Args:
        node_name: What autograd calls its node.
        num_signals: How many of its inputs are signals: a product of one is that with weights, of two that of two
            signals, as in attention.
    """
    name = plain_name(node_name)
    if name in _PRODUCTS or "conv" in name:
        return "weights" if num_signals < 2 else "products"
    exact = next((group for group, names in _NAMES if name in names), None)
    if exact is not None:
        return exact
    if "norm" in name and not any(other in name for other in ("linalg", "weight", "spectral")):
        return "normalisation"
    is_own = node_name.endswith("Backward")  # nodes of torch have a number behind it
    rest: Group = "custom" if is_own else "other"
    return next((group for group, parts in _PARTS if any(part in name for part in parts)), rest)


def counted(group: Group, count: int) -> str:
    """How many of a group there are, in words: ``19 sigmoids``."""
    return f"{count} {_WORDS[group][count != 1]}"
