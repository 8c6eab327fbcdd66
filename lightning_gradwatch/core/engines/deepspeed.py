"""DeepSpeed's ZeRO: its own optimizer keeps gradients, and the weights that it changes, in pieces of its own.

The parameters of the model have no ``.grad`` when a step is due, and at stage 3 no elements. What a rank holds of each
is a run of elements of a flat partition of float32 weights; its gradient, another run, exists from the last micro-batch
until the step. A ``Piece`` stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core.engines.engine import Engine
from lightning_gradwatch.core.modules import facts_of, modules, parameters
from lightning_gradwatch.core.shards import Cut

_STAGES_1_AND_2, _STAGE_3 = "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"
_CURE = 'strategy="deepspeed_stage_2", or "deepspeed_stage_3" where the model does not fit'


class Piece(Tensor):
    """What this rank holds of a parameter: a view of the float32 weights, whose gradient may be of another precision.

    Torch's own ``.grad`` must have the dtype of its tensor.
    """

    grad: Tensor | None = None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _Place(NamedTuple):
    """Where a rank holds its run of elements of one parameter.

    Attributes:
        parameter: As the model has registered it.
        group: Which group of the torch optimizer it belongs to.
        flat: The partition of float32 weights.
        start: The first of its elements there.
        length: How many there are; 0 for none.
        list_index: Which list of gradients its gradient is in, and where.
        num_shards: Into how many parts the parameter is cut.
        shape: Of the whole.
    """

    parameter: Tensor
    group: int
    flat: Tensor
    start: int
    length: int
    list_index: tuple[int, int]
    num_shards: int
    shape: torch.Size

    def part_of(self, flat: Tensor) -> Tensor:
        """Its run of elements of a tensor that lies beside the weights; of the parameter's shape where it is whole."""
        part = flat.detach().narrow(0, self.start, self.length)
        return part.view(self.shape) if self.num_shards == 1 else part


class Zero:
    """The gradients of one optimizer of DeepSpeed, at stages 1, 2 and 3.

    Args:
        optimizer: The optimizer, which wraps one of torch.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        is_stage_3 = type(optimizer).__name__ == _STAGE_3
        self._is_stage_3 = is_stage_3
        places = _places_of_stage_3(optimizer) if is_stage_3 else _places_of_stages_1_and_2(optimizer)
        self._places = {id(place.parameter): place for place in places}
        self._pieces = {key: _piece(place) for key, place in self._places.items()}
        self._partition = _empty_piece(next(iter(self._places.values())).flat)
        # who has had a gradient in the course of this step: DeepSpeed fills in zeros for the others
        self._reached: set[int] = set()
        self._is_read = False
        hooks = [p.register_post_accumulate_grad_hook(self._note) for p in self._parameters() if p.requires_grad]
        self._hooks: list[RemovableHandle] = hooks
        self._skipping: list[RemovableHandle] = []

    def _parameters(self) -> list[Tensor]:
        return [place.parameter for place in self._places.values()]

    def _note(self, parameter: Tensor) -> None:
        """Called by torch when the gradient of a parameter is complete for one micro-batch."""
        if self._is_read:
            self._reached.clear()
            self._is_read = False
        self._reached.add(id(parameter))

    @property
    def groups(self) -> Sequence[Sequence[Tensor]]:
        """The parameters of the model; at stage 3 a group may be cut into several."""
        groups: Sequence[Sequence[Tensor]] = (
            self.optimizer.fp16_groups if self._is_stage_3 else self.optimizer.bit16_groups
        )
        return groups

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """The pieces, with the hyperparameters of their groups."""
        groups = [{**group, "params": []} for group in self.optimizer.param_groups]
        for key, place in self._places.items():
            groups[place.group]["params"].append(self._pieces[key])
        return groups

    @property
    def state(self) -> Mapping[Any, Any]:
        """What the torch optimizer remembers, piece by piece."""
        states = self.optimizer.state
        return {self._pieces[key]: _state_of(place, states.get(place.flat, {})) for key, place in self._places.items()}

    def cuts(self) -> Mapping[int, Cut]:
        """The pieces, by the ids of the model's parameters."""
        return {
            key: Cut(place.shape, place.num_shards, self._partition, self._pieces[key])
            for key, place in self._places.items()
        }

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Give each piece its gradient, and take it away again, so that nothing is held longer than by DeepSpeed."""
        self._let_step()
        self._is_read = True
        for key, place in self._places.items():
            if place.length and key in self._reached:
                self._pieces[key].grad = self._gradient_of(place)
        self._partition.grad = torch.empty(0) if self._reached else None
        try:
            yield
            self._tell_norms()
        finally:
            for piece in (*self._pieces.values(), self._partition):
                piece.grad = None

    def _tell_norms(self) -> None:
        """DeepSpeed clips offloaded gradients by norms that it has taken before we could clip them."""
        known = getattr(self.optimizer, "norm_for_param_grads", None)
        if known is None or not self.optimizer.clip_grad:
            return
        for key, place in self._places.items():
            gradient = self._pieces[key].grad
            if gradient is not None:
                known[self.optimizer.get_param_id(place.parameter)] = gradient.float().norm()

    def _gradient_of(self, place: _Place) -> Tensor:
        """A view of what DeepSpeed is going to apply, as long as the piece."""
        if place.flat.grad is not None:  # offloaded: it lies beside the weights
            return place.part_of(place.flat.grad)
        group, index = place.list_index
        held = self.optimizer.averaged_gradients[group]
        if not held[index].is_contiguous():
            held[index] = held[index].contiguous()
        gradient: Tensor = held[index].detach().view(-1)[: place.length]
        return gradient.view(place.shape) if place.num_shards == 1 else gradient

    def drop_step(self) -> None:
        """Let the torch optimizer step without parameters; DeepSpeed goes on as if it had stepped."""
        kept: list[list[Any]] = []

        def hide(optimizer: Optimizer, *_: object) -> None:
            kept[:] = [group["params"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["params"] = []

        def show(optimizer: Optimizer, *_: object) -> None:
            for group, params in zip(optimizer.param_groups, kept, strict=True):
                group["params"] = params

        inner: Optimizer = self.optimizer.optimizer
        self._skipping = [inner.register_step_pre_hook(hide), inner.register_step_post_hook(show)]

    def _let_step(self) -> None:
        for hook in self._skipping:
            hook.remove()
        self._skipping = []

    def close(self) -> None:
        """Take the hooks off the parameters and the optimizer."""
        self._let_step()
        for hook in self._hooks:
            hook.remove()


def _places_of_stages_1_and_2(optimizer: Any) -> Iterator[_Place]:
    """The parameters of a group lie end to end, in an order of DeepSpeed's, and each rank has an even part of that.

    What it links to each parameter itself (``_hp_mapping``) is wrong under ``round_robin_gradients``.
    """
    for group, parameters_of_group in enumerate(optimizer.bit16_groups):
        flat, ranks = optimizer.single_partition_of_fp32_groups[group], optimizer.real_dp_process_group[group]
        num_shards, rank = torch.distributed.get_world_size(ranks), torch.distributed.get_rank(ranks)
        first = optimizer.grad_start_offset[group][rank]
        starts = optimizer.grad_partition_insertion_offset[group][rank]
        runs: dict[int, tuple[int, int, int]] = {}
        end = index = 0
        for parameter in optimizer.params_in_partition[group]:
            key = optimizer.get_param_id(parameter)
            start = starts[key]
            index += start > end  # the list of gradients has one of zeros where alignment leaves a gap
            length = min(parameter.numel() - first[key], flat.numel() - start)
            runs[id(parameter)] = (start, length, index)
            end, index = start + length, index + 1
        for parameter in parameters_of_group:
            start, length, index = runs.get(id(parameter), (0, 0, 0))
            yield _Place(parameter, group, flat, start, length, (group, index), num_shards, parameter.shape)


def _places_of_stage_3(optimizer: Any) -> Iterator[_Place]:
    """Each rank has an even part of each parameter, the last ranks less or nothing."""
    for subgroup, held in enumerate(optimizer.fp16_groups):
        flat, group = optimizer.fp32_partitioned_groups_flat[subgroup], optimizer.sub_group_to_group_id[subgroup]
        for index, parameter in enumerate(held):
            ranks, part = parameter.ds_process_group, parameter.partition_numel()
            _, start, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            length = max(min(part, parameter.ds_numel - part * torch.distributed.get_rank(ranks)), 0)
            num_shards = torch.distributed.get_world_size(ranks)
            yield _Place(parameter, group, flat, start, length, (subgroup, index), num_shards, parameter.ds_shape)


def _piece(place: _Place) -> Piece:
    if not place.length:
        return _empty_piece(place.flat)
    return torch.Tensor._make_subclass(Piece, place.part_of(place.flat), place.parameter.requires_grad)


def _empty_piece(flat: Tensor) -> Piece:
    return torch.Tensor._make_subclass(Piece, flat.detach().new_empty(0), True)


def _state_of(place: _Place, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the optimizer remembers of one parameter: numbers as they are, what lies beside the weights in part."""
    return {
        key: place.part_of(value) if isinstance(value, Tensor) and value.shape == place.flat.shape else value
        for key, value in state.items()
    }


class _EngineDriver:
    """DeepSpeed's engine: it accumulates, scales and clips by itself."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def completes_a_step(self) -> bool:
        """Whether this is the last micro-batch."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    def num_steps(self) -> int:
        """Steps it has taken, those that it skipped among them."""
        return int(self._engine.global_steps)

    def loss_scale(self) -> float | None:
        """Of float16 alone."""
        return float(self._engine.optimizer.loss_scale) if self._engine.fp16_enabled() else None

    def max_norm(self) -> float | None:
        """What stands in its configuration."""
        return float(self._engine.gradient_clipping()) or None


def _is_of_deepspeed(something: object) -> bool:
    """Whether DeepSpeed has made it, which costs no import where nobody uses it."""
    return any(base.__module__.startswith("deepspeed.runtime.") for base in type(something).__mro__)


def _driver(model: object) -> _EngineDriver | None:
    return _EngineDriver(model) if _is_of_deepspeed(model) else None


def _access(optimizer: object) -> Zero | None:
    return Zero(optimizer) if _is_of_deepspeed(optimizer) else None


def _is_piece(parameter: Tensor) -> bool:
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_shape")


def _cuts(model: nn.Module) -> dict[int, Cut]:
    """The shapes of parameters that are empty outside of their layer's forward and backward pass (stage 3).

    Raises:
        ValueError: If ranks hold other layers than their neighbours do.
    """
    for module in modules(model):
        num_stages = facts_of(module).get("num_stages", 1) if _is_of_deepspeed(module) else 1
        if num_stages > 1:
            came = f"{type(module).__name__} in {num_stages} stages"
            cure = f"num_stages=1, or torch's nn.Sequential with {_CURE}"
            raise refuse("model", "one of which every rank runs all layers", came, cure)
    there = [parameter for parameter in parameters(model) if hasattr(parameter, "ds_shape")]
    return {id(parameter): Cut(parameter.ds_shape) for parameter in there}


def _check(strategy: object) -> None:
    """Refuse what lies on a disk, or is hidden in another way.

    Raises:
        ValueError: If the strategy's configuration says so.
    """
    config = getattr(strategy, "config", None) or {}
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise refuse("strategy", "DeepSpeed with ZeRO stage 1, 2 or 3", f"stage {stage}", f'{_CURE}; or strategy="ddp"')
    for what in ("offload_optimizer", "offload_param"):
        if (zero.get(what) or {}).get("device") == "nvme":
            cure = f'"device": "cpu" in `{what}`, or no `{what}`'
            raise refuse("strategy", "one whose gradients stay in memory", f"{what} to NVMe (ZeRO-Infinity)", cure)
    if zero.get("zenflow"):
        raise refuse("strategy", "one that applies every gradient in its own step", "ZenFlow", f"no `zenflow`: {_CURE}")


def _check_optimizer(optimizer: Any) -> None:
    """Refuse optimizers of DeepSpeed that hold gradients in yet another way.

    Raises:
        ValueError: If it is one.
    """
    if not _is_of_deepspeed(optimizer):
        return
    name = type(optimizer).__name__
    if name not in (_STAGES_1_AND_2, _STAGE_3):
        cure = f"{_CURE}; with stage 1 in bfloat16, without `grad_accum_dtype`"
        raise refuse("strategy", "DeepSpeed with its ZeRO optimizer", name, cure)
    if getattr(optimizer, "has_moe_layers", False) or getattr(optimizer, "model_parallel_world_size", 1) > 1:
        came = "experts or tensors that are spread over ranks in another way"
        raise refuse(
            "strategy", "DeepSpeed with ZeRO alone", came, 'strategy="fsdp", or no expert or tensor parallelism'
        )
    if "muon" in type(optimizer.optimizer).__name__.lower():
        raise refuse("strategy", "DeepSpeed with an optimizer that is given gradients", "Muon", "AdamW, for example")


DEEPSPEED = Engine(
    ("DeepSpeedStrategy",),
    check=_check,
    check_optimizer=_check_optimizer,
    cuts=_cuts,
    is_piece=_is_piece,
    access=_access,
    driver=_driver,
)
