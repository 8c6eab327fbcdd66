"""What this rank holds of each tensor, and how the parts on all ranks become the numbers of the whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from torch import Tensor

from lightning_gradwatch.core.records import MISSING

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

Kind = Literal["norm", "count", "sum", "rms", "mean"]
"""How the ranks' numbers become one: ``norm`` and ``count`` per parameter, weighted by what a rank holds of it; ``sum``
of numbers already so weighted; ``rms`` and ``mean`` over the ranks that have one."""

_WHOLE = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class Cut:
    """How a parameter is cut into what the ranks hold of it.

    Attributes:
        shape: Of the whole.
        num_shards: Into how many parts, each held by one rank or by several replicas.
        flat: What this rank holds of all parameters that were cut together (FSDP1); None where each is cut by itself.
            A rank may hold nothing of one of them, but always some of this.
        piece: What this rank holds of it, where that is not the parameter itself (DeepSpeed).
    """

    shape: torch.Size
    num_shards: int = 1
    flat: Tensor | None = None
    piece: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Cut:
        """As the tensor itself says."""
        return cls(tensor.shape, num_shards(tensor))

    def held(self, parameter: Tensor) -> Tensor:
        """What this rank holds of the parameter."""
        return parameter if self.piece is None else self.piece


def is_spread(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a ``DTensor``, of which each rank holds a part (FSDP2, tensor parallelism)."""
    return type(tensor) not in _WHOLE and any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; the tensor itself if it is not spread over ranks."""
    return tensor.to_local() if is_spread(tensor) else tensor


def num_shards(tensor: Tensor) -> int:
    """Into how many parts a tensor is cut, each held by one rank or by several replicas."""
    return _num_shards(tensor.device_mesh, tensor.placements) if is_spread(tensor) else 1


def _num_shards(mesh: DeviceMesh, placements: Sequence[Placement]) -> int:
    cuts = (dim for dim, place in enumerate(placements) if not (place.is_replicate() or place.is_partial()))
    return math.prod(mesh.size(dim) for dim in cuts)


def num_gradient_shards(output: Tensor) -> int:
    """Into how many parts tensor parallelism has cut a plain tensor, of which this is one; its gradient is cut alike.

    A parallel layer makes a ``DTensor`` and hands on what ``to_local`` takes out of it, whose node in autograd's graph
    knows. A ``DTensor`` has a gradient that says it itself.

    Raises:
        TypeError: If the ranks will each have a part of a sum for a gradient.
    """
    node = output.grad_fn
    spec = getattr(node, "dtensor_spec", None)
    if spec is None:
        return 1
    placements = getattr(node, "grad_placements", None)
    if placements is None:  # that of a sum that has not been added up is the same on all ranks
        return _num_shards(spec.mesh, spec.placements)
    refuse_partial_sums(placements)
    return _num_shards(spec.mesh, placements)


def refuse_partial_sums(placements: Sequence[Placement]) -> None:
    """Refuse what is only a part of a sum on each rank, so that no rank knows a norm.

    Raises:
        TypeError: If it is.
    """
    if any(place.is_partial() for place in placements):
        raise TypeError("its gradient is a sum that the ranks have not added up")


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, every element of it final.

    Sequence parallelism leaves partial sums in the gradients of normalisation layers; they are added up here, in one
    collective per mesh. All ranks must call this together if there are any.
    """
    parts = [local(tensor) for tensor in tensors]
    partial: dict[tuple[DeviceMesh, tuple[Placement, ...], torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        placements = _placements(tensor)
        if any(place.is_partial() for place in placements):
            mesh = tensor.device_mesh  # type: ignore[attr-defined]
            partial.setdefault((mesh, placements, tensor.dtype), []).append(i)
    for (mesh, placements, _), places in partial.items():
        summed = _add_up(torch.cat([parts[i].reshape(-1) for i in places]), mesh, placements)
        for i, piece in zip(places, summed.split([parts[i].numel() for i in places]), strict=True):
            parts[i] = piece.view(parts[i].shape)
    return parts


def _add_up(flat: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    here = [place if place.is_partial() else Replicate() for place in placements]
    spread = DTensor.from_local(flat, mesh, here, run_check=False)
    return spread.redistribute(placements=[Replicate()] * mesh.ndim).to_local()


def _placements(tensor: Tensor) -> tuple[Placement, ...]:
    return tensor.placements if is_spread(tensor) else ()


def _cut_alike(part: Tensor, tensor: Tensor, parameter: Tensor) -> Tensor:
    """What of a tensor belongs to this rank's part of a parameter, given this rank's part without partial sums."""
    from torch.distributed.tensor import DTensor, Replicate

    if not is_spread(tensor) or not is_spread(parameter):
        return part
    here = [Replicate() if place.is_partial() else place for place in tensor.placements]
    spread = DTensor.from_local(
        part, tensor.device_mesh, here, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return spread.redistribute(placements=parameter.placements).to_local()


class Shards:
    """How the parameters are spread over the ranks.

    Args:
        parameters: The watched parameters.
        cuts: How each is cut; empty if the parameters themselves say so.

    Attributes:
        num_ranks: Number of ranks, of which each may have batches of its own.
        is_spread: Whether ranks hold parts of any of them. Otherwise every method here does nothing.
        are_whole: Whether each rank holds every one of them as a whole.
        shares: For each parameter what one rank contributes to a sum over all ranks: the number of its shards over the
            number of ranks; 1 where nothing is spread.
        agrees: Whether all ranks see the same numbers: there is one rank only, or numbers are reduced over all.
        num_met: How often the ranks have exchanged numbers here so far.
        num_to_skip: How often they did so already in a step that this rank goes through again, after a failure.
    """

    def __init__(self, parameters: Sequence[Tensor], cuts: Sequence[Cut] = ()) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.num_ranks = torch.distributed.get_world_size() if distributed else 1
        cuts = cuts or [Cut.of(p) for p in parameters]
        self._flats = [cut.flat for cut in cuts if cut.flat is not None] if self.num_ranks > 1 else []
        self.is_spread = bool(self._flats) or any(is_spread(p) for p in parameters)
        self.are_whole = not any(is_spread(p) or cut.num_shards > 1 for p, cut in zip(parameters, cuts, strict=True))
        self.agrees = self.is_spread or self.num_ranks == 1
        self.shares = [cut.num_shards / self.num_ranks if self.is_spread else 1.0 for cut in cuts]
        self.num_met = self.num_to_skip = 0
        if self.is_spread:
            self._shares = torch.tensor(self.shares, dtype=torch.float64, device=parameters[0].device)

    def have_gradients(self) -> bool:
        """Whether there are gradients of which this rank holds nothing."""
        return any(flat.grad is not None for flat in self._flats)

    def local_parts(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """This rank's part of each tensor, cut as the parameter that it belongs to. No cost where nothing is spread.

        The gradient of a parameter that is cut may be a whole that has not been added up. All ranks must call this
        together if there are such.
        """
        if not self.is_spread:
            return tensors
        pairs = [
            (_placements(tensor), _placements(parameter)) for tensor, parameter in zip(tensors, parameters, strict=True)
        ]
        others = [i for i, (here, wanted) in enumerate(pairs) if here != wanted]
        if not others or self._has_met():
            return [local(tensor) for tensor in tensors]
        parts = local_parts(tensors)
        for i in others:
            parts[i] = _cut_alike(parts[i], tensors[i], parameters[i])
        return parts

    def _has_met(self) -> bool:
        """Whether the ranks have exchanged these numbers already, so that they do not wait for this one."""
        if self.num_to_skip:
            self.num_to_skip -= 1
            return True
        self.num_met += 1
        return False

    def reduce(
        self, numbers: Mapping[str, Tensor], kinds: Mapping[str, Kind], absent: Collection[object] = ()
    ) -> dict[str, Tensor]:
        """Make the ranks' numbers those of the whole, in one collective. All ranks must call this together.

        Args:
            numbers: Float32 tensors of any shapes, the same ones on every rank; ``-1`` for "none here". Kinds ``norm``
                and ``count`` have one entry per parameter in the last dimension.
            kinds: The kind of each.
            absent: Names of what this rank could not measure: then no rank has it, for the whole is not known.

        Returns:
            Float32 tensors of the same shapes, alike on all ranks; ``-1`` where no rank had a number. What came, if
            nothing is spread. Nothing, if the ranks have done it before this one goes through the step again.
        """
        if not self.is_spread:
            return dict(numbers)
        has = {name: values != MISSING for name, values in numbers.items()}
        sums = {name: self._share(values.double(), kinds[name]) for name, values in numbers.items()}
        parts = [part.masked_fill(~has[name], 0).reshape(-1) for name, part in sums.items()]
        counts = [
            torch.full_like(part, -torch.inf) if name in absent else has[name].reshape(-1).double()
            for name, part in zip(numbers, parts, strict=True)
        ]
        payload = torch.cat([*parts, *counts])
        if not payload.numel():  # no step since the last copy, on any rank
            return dict(numbers)
        if self._has_met():
            return {}
        payload = _add_up_ranks(payload)
        shapes = [values.shape for values in numbers.values()]
        sizes = [shape.numel() for shape in shapes]
        totals, numbers_of_ranks = payload.split(sum(sizes))
        return {
            name: _whole(total.view(shape), count.view(shape), kinds[name])
            for name, shape, total, count in zip(
                numbers, shapes, totals.split(sizes), numbers_of_ranks.split(sizes), strict=True
            )
        }

    def _share(self, values: Tensor, kind: Kind) -> Tensor:
        values = values.square() if kind in ("norm", "rms") else values
        return values * self._shares if kind in ("norm", "count") else values


def _add_up_ranks(payload: Tensor) -> Tensor:
    """The sum over all ranks; NCCL takes nothing from the host, where offloaded gradients lie."""
    there = payload.cuda() if payload.is_cpu and torch.distributed.get_backend() == "nccl" else payload
    torch.distributed.all_reduce(there)
    return there.to(payload.device)


def _whole(total: Tensor, count: Tensor, kind: Kind) -> Tensor:
    mean = total / count.clamp(min=1)
    whole = {"norm": total.sqrt, "count": total.clone, "sum": total.clone, "rms": mean.sqrt, "mean": mean.clone}[kind]()
    return whole.float().masked_fill(count <= 0, MISSING)
