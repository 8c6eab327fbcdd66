"""Which layers there are, what they are called, and in which order they ran."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_gradwatch.core import engines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.modules import (
    children_of,
    facts_of,
    is_compiled,
    modules,
    named_modules,
    named_parameters,
    parameters,
    parameters_of,
)
from lightning_gradwatch.core.records import Layer
from lightning_gradwatch.core.shards import Cut

ROOT = "(model)"
OUTSIDE = "(outside the model)"
MAX_ROWS = 50
MIN_ROWS = 10
_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128,
}  # fmt: skip
_NO_CUTS: Mapping[int, Cut] = {}
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations(\.|$)")
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(\.|$)")


@dataclass(frozen=True)
class ParameterLayout:
    """The parameters of one optimizer, sorted into layers.

    Attributes:
        parameters: The measurable parameters, each once, in the optimizer's order; or what stands for them.
        layers: The layers to report, as registered.
        layer_index: For each parameter the index of its layer in ``layers``; ``len(layers)`` if it is not reported.
        fan_in: For each parameter the fan-in if it is the first matrix of a linear, convolutional or recurrent layer;
            otherwise 0.
        owners: For each parameter the name of its layer, reported or not.
        cuts: For each parameter how it is cut into what the ranks hold, with the shape of the whole.
    """

    parameters: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    layer_index: tuple[int, ...]
    fan_in: tuple[float, ...]
    owners: tuple[str, ...]
    cuts: tuple[Cut, ...]


def clean_name(name: str) -> str:
    """A module path without the prefixes that torch.compile, FSDP and activation checkpointing put in."""
    return _WRAPPERS.sub("", name).rstrip(".")


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that directly own parameters, by their clean path, in the order of registration.

    What ``torch.nn.utils.parametrize`` has taken out of a module still belongs to it.
    """
    found: dict[str, nn.Module] = {}
    by_path = dict(named_modules(model))
    for path, module in by_path.items():
        if parameters_of(module):
            inside = next((m for m in _PARAMETRIZED.finditer(path) if _hides(by_path[path[: m.start()]])), None)
            owner = path[: inside.start()] if inside else path
            found.setdefault(clean_name(owner) or ROOT, by_path[owner])
    return found


def own_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters that a module owns directly, those behind its parametrizations included."""
    hidden = parameters(children_of(module)["parametrizations"]) if _hides(module) else ()
    return list({id(p): p for p in (*parameters_of(module).values(), *hidden)}.values())


def _hides(module: nn.Module) -> bool:
    """Whether ``torch.nn.utils.parametrize`` has taken parameters out of a module."""
    parametrizations = children_of(module).get("parametrizations")
    return parametrizations is not None and any(
        isinstance(part, ParametrizationList) for part in children_of(parametrizations).values()
    )


def uncompiled_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers outside every module that torch.compile has taken over, in whose graphs a hook would be a guest."""
    compiled = {id(part) for module in modules(model) if is_compiled(module) for part in modules(module)}
    return {name: module for name, module in named_layers(model).items() if id(module) not in compiled}


def select(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """The layer names that match a glob of ``include`` (all, if there is none) and none of ``exclude``."""
    return [
        name
        for name in names
        if (not include or any(fnmatchcase(name, glob) for glob in include))
        and not any(fnmatchcase(name, glob) for glob in exclude)
    ]


def check_selection(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse globs that match no layer.

    Raises:
        ValueError: If a glob of ``include`` matches nothing, or nothing is left to watch.
    """
    names = list(named_layers(model))
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    for glob in include:
        if not select(names, [glob], []):
            raise refuse("include", "globs that each match a layer", glob, f"the model's layers are {known}")
    if names and not select(names, include, exclude):
        raise refuse("exclude", "globs that leave a layer to watch", list(exclude), f"the model's layers are {known}")


def shape_of(parameter: Tensor, cuts: Mapping[int, Cut]) -> torch.Size:
    """Shape of the whole, wherever its parts are."""
    return cuts[id(parameter)].shape if id(parameter) in cuts else parameter.shape


def num_dims(parameter: Tensor, cuts: Mapping[int, Cut]) -> int:
    """Dimensions of the whole; a nested tensor has some, but no shape."""
    return len(cuts[id(parameter)].shape) if id(parameter) in cuts else parameter.ndim


def is_measurable(parameter: Tensor, cuts: Mapping[int, Cut] = _NO_CUTS) -> bool:
    """Whether a parameter has numbers that can be read: not one that is lazy, empty, nested, sparse or on no device.

    Floats of 8 bits and fewer store weights that are not trained.
    """
    return (
        not is_lazy(parameter)
        and parameter.layout is torch.strided
        and not parameter.is_nested
        and not parameter.is_meta
        and parameter.dtype in _DTYPES
        and shape_of(parameter, cuts).numel() > 0
    )


def owns_matrix(module: nn.Module, parameters: Iterable[Tensor], cuts: Mapping[int, Cut] = _NO_CUTS) -> bool:
    """Whether a module belongs into the depth profile: it owns a matrix and is not a normalisation layer."""
    is_norm = "norm" in type(module).__name__.lower()
    return not is_norm and any(is_lazy(p) or num_dims(p, cuts) >= 2 for p in parameters)


def make_layout(
    model: nn.Module,
    parameters: Iterable[Tensor],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    known: Mapping[int, Cut] = _NO_CUTS,
) -> ParameterLayout:
    """Sort an optimizer's parameters into the layers that own them.

    A shared parameter belongs to the first layer that registered it, and counts there alone. Further layers that share
    a matrix take part in the depth profile by their outputs; one that has nothing besides is a layer without parameters
    of its own. Empty and integer parameters have no gradient norm and are left out; parameters of no module go to the
    layer ``"(outside the model)"``.

    Args:
        model: The model whose module paths name the layers.
        parameters: The optimizer's parameters, in any order.
        include: Globs over layer names to report; empty for all.
        exclude: Globs over layer names not to report.
        known: How parameters are cut of which the optimizer knows more than the model, by their ids.

    Returns:
        The layout. Parameters of layers that are not reported still count in the total norm.
    """
    cuts = {**engines.cuts(model), **known}
    measurable = tuple({id(p): p for p in parameters if is_measurable(p, cuts)}.values())
    wanted = {id(p) for p in measurable}
    names: dict[int, list[str]] = {}
    for name, parameter in named_parameters(model, with_aliases=True):
        names.setdefault(id(parameter), []).append(clean_name(name))
    layers: list[Layer] = []
    layer_of: dict[int, int] = {}
    fan_in: dict[int, float] = {}
    for path, module in named_layers(model).items():
        held = [p for p in own_parameters(module) if id(p) in wanted]
        own = [p for p in held if id(p) not in layer_of]
        has_matrix = owns_matrix(module, held, cuts)
        if not own and not (has_matrix and _is_called(module)):
            continue
        fan_in.update(_fan_in(module, own, cuts))
        layers.append(
            Layer(
                name=path,
                parameters=tuple(names[id(p)][0] for p in own),
                shared_with=tuple(
                    alias for p in held for alias in (names[id(p)][:1] if id(p) in layer_of else names[id(p)][1:])
                ),
                has_matrix=has_matrix,
                shares_matrix=has_matrix and not owns_matrix(module, own, cuts),
                num_elements=_num_elements(own, cuts),
            )
        )
        layer_of.update((id(p), len(layers) - 1) for p in own)
    strangers = [p for p in measurable if id(p) not in layer_of]
    if strangers:
        layer_of.update((id(p), len(layers)) for p in strangers)
        names_outside = tuple(f"parameter {i}" for i in range(len(strangers)))
        layers.append(Layer(OUTSIDE, names_outside, num_elements=_num_elements(strangers, cuts)))
    chosen = set(select((layer.name for layer in layers), include, exclude))
    kept = [i for i, layer in enumerate(layers) if layer.name in chosen]
    place = {old: new for new, old in enumerate(kept)}
    whole = {id(p): cuts.get(id(p)) or Cut.of(p) for p in measurable}
    return ParameterLayout(
        parameters=tuple(whole[id(p)].held(p) for p in measurable),
        layers=tuple(layers[i] for i in kept),
        layer_index=tuple(place.get(layer_of[id(p)], len(kept)) for p in measurable),
        fan_in=tuple(fan_in.get(id(p), 0.0) for p in measurable),
        owners=tuple(layers[layer_of[id(p)]].name for p in measurable),
        cuts=tuple(whole.values()),
    )


def _num_elements(parameters: Iterable[Tensor], cuts: Mapping[int, Cut]) -> int:
    return sum(shape_of(parameter, cuts).numel() for parameter in parameters)


def _is_called(module: nn.Module) -> bool:
    """Whether a module computes anything, and does not merely hold parameters."""
    return not isinstance(module, (nn.ParameterList, nn.ParameterDict))


def _fan_in(module: nn.Module, parameters: Iterable[Tensor], cuts: Mapping[int, Cut]) -> dict[int, float]:
    """Fan-in of a module's first matrix, by its id; nothing for embeddings and the like, which have none."""
    matrix = next((p for p in parameters if num_dims(p, cuts) >= 2), None)
    is_table = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if matrix is None or is_table or not owns_matrix(module, [matrix], cuts):
        return {}
    shape = shape_of(matrix, cuts)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return {id(matrix): shape.numel() / shape[1] / math.prod(facts_of(module)["stride"])}
    return {id(matrix): shape.numel() / shape[0]}


def running_order(layers: Sequence[Layer], ran: Sequence[str]) -> list[int]:
    """The order in which layers ran.

    A layer that did not run (such as the output projection inside ``nn.MultiheadAttention``, whose weights are used
    without calling it) keeps its place behind the layer registered before it.

    Args:
        layers: The layers as registered.
        ran: Layer names in the order in which their first forward call ended.

    Returns:
        Indices into ``layers``.
    """
    rank = {name: i for i, name in enumerate(ran)}
    place = -1
    keys: list[tuple[int, int]] = []
    for i, layer in enumerate(layers):
        place = rank.get(layer.name, place)
        keys.append((place, i))
    return sorted(range(len(layers)), key=keys.__getitem__)


def roll_up(names: Sequence[str], group_by: int | None = None) -> dict[str, list[int]]:
    """Gather layers into the rows of the standard dashboards.

    Args:
        names: Layer names in the order in which they ran.
        group_by: Number of leading path components that name a row. None gives every layer its own row if there are at
            most 50, otherwise one row per module at the deepest level with at most 50 modules; where that level is
            too coarse (fewer than 10 rows), neighbours share a row.

    Returns:
        Row names with the indices of their layers, in the order in which they ran.
    """
    if group_by is not None:
        return _by_prefix(names, group_by)
    rows = {name: [i] for i, name in enumerate(names)}
    depth = max((name.count(".") for name in names), default=0)
    while len(rows) > MAX_ROWS and depth > 0:
        rows = _by_prefix(names, depth)
        depth -= 1
    if len(rows) > MAX_ROWS:
        rows = {"": list(range(len(names)))}
    return _in_blocks(names, rows) if len(rows) < MIN_ROWS < len(names) else rows


def _by_prefix(names: Sequence[str], depth: int) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(".".join(name.split(".")[:depth]), []).append(i)
    return rows


def _in_blocks(names: Sequence[str], rows: dict[str, list[int]]) -> dict[str, list[int]]:
    """Cut wide rows into blocks of neighbours, so that there are at most 50 rows."""
    size = -(-len(names) // (MAX_ROWS - len(rows)))
    blocks: dict[str, list[int]] = {}
    for indices in rows.values():
        for i in range(0, len(indices), size):
            block = indices[i : i + size]
            first, last = names[block[0]], names[block[-1]]
            blocks[first if first == last else f"{first} to {last}"] = block
    return blocks
