"""What to clip by, and which gradients: one frozen dataclass per published method, validated when it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from lightning_gradwatch.core._check import is_list, refuse, require, require_globs


def _require_number(
    argument: str, value: object, rule: str, cure: str, most: float = math.inf, below: float = math.inf
) -> None:
    number = float(value) if isinstance(value, (Real, float)) and not isinstance(value, bool) else math.nan
    if not (0 < number <= most and number < below):
        raise refuse(argument, f"a number, {rule}", value, cure)


class ClipPolicy:
    """A way to clip gradients; every one has ``include``, ``exclude`` and ``optimizer``, see :class:`Percentile`.

    Not a dataclass itself: jsonargparse takes ``class_path`` for subclasses of an ordinary class only.
    """

    include: str | Sequence[str]
    exclude: str | Sequence[str]
    optimizer: str | None


@dataclass(frozen=True, kw_only=True)
class _Selective(ClipPolicy):
    """Which gradients a policy is for; carried here, evaluated by who builds the :class:`Clipper`."""

    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for argument in ("include", "exclude"):
            object.__setattr__(self, argument, require_globs(argument, getattr(self, argument)))
        if self.optimizer is not None and not (isinstance(self.optimizer, str) and self.optimizer):
            raise refuse("optimizer", "the name of an optimizer", self.optimizer, "use None for all optimizers")


@dataclass(frozen=True)
class Percentile(_Selective):
    """Clips the total norm at a percentile of its own recent history (AutoClip).

    Any loss, any scale: there is no number to be found by trial. Two differences from the paper. It remembers all steps
    since the first; this remembers the last ``window``, so that the memory is bounded and the threshold follows the
    training. And it takes percentiles from the first step on; these follow the first leaps of a training that is about
    to diverge, so this holds the threshold at the smallest norm for ``first_steps``. A total norm of exactly zero is
    not remembered. What it cannot cure is a learning rate at which steps of a usual length are too long: the norms grow
    for good, and the threshold follows.

    Attributes:
        percentile: Position in the sorted history, in percent, ``0 < percentile <= 100``: about ``100 - percentile``
            percent of the steps are clipped.
        window: Number of steps remembered, the present one included; 2 or more.
        first_steps: Number of first steps at which the threshold is the smallest norm so far; 0 for the paper's start.
        include: Globs over the names of the layers to clip; none for all.
        exclude: Globs over the names of layers to leave alone.
        optimizer: Name of the only optimizer whose gradients are meant; None for all.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation Networks", MLSP 2020.
    """

    percentile: float = 10.0
    window: int = 1000
    first_steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("percentile", self.percentile, "in (0, 100]", "10 clips nine steps of ten", most=100)
        require("window", self.window, minimum=2, cure="use 1000 unless memory is scarce")
        require("first_steps", self.first_steps, minimum=0, cure="use 0 for percentiles from the start")


@dataclass(frozen=True)
class ZScore(_Selective):
    """Clips total norms that are outliers of their running mean and deviation (ZClip).

    Its mean and deviation follow the clipped norms, and see no norm that is zero or not finite. Two differences from
    the authors' code: there is no ``max_grad_norm=1.0`` that is always on behind the adaptive threshold, and the
    epsilon beside the deviation is relative to the mean, so that the scale of the loss does not matter. Nothing is
    clipped during the warm-up.

    Attributes:
        z_threshold: Distance from the mean, in standard deviations, from which a norm is an outlier; positive.
        alpha: How slowly the statistics follow, ``0 < alpha < 1``.
        warmup_steps: Number of steps from which the first statistics are taken; 2 or more.
        include: As in :class:`Percentile`.
        exclude: As in :class:`Percentile`.
        optimizer: As in :class:`Percentile`.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv:2504.02507, 2025.
    """

    z_threshold: float = 2.5
    alpha: float = 0.97
    warmup_steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("z_threshold", self.z_threshold, "positive and finite", "the paper uses 2.5")
        _require_number("alpha", self.alpha, "in (0, 1)", "the paper uses 0.97", below=1)
        require("warmup_steps", self.warmup_steps, minimum=2, cure="the paper uses 25")


@dataclass(frozen=True)
class AGC(_Selective):
    """Clips each unit's gradient norm at a share of that unit's weight norm (adaptive gradient clipping of NFNets).

    A unit is what one output sees: a row of a weight, a filter of a convolution, a whole bias. The paper and timm leave
    out the last linear layer, which no rule finds by itself: name it in ``exclude``. Needs whole weights and is refused
    where these are sharded.

    Attributes:
        clip_factor: Largest allowed ratio of gradient norm to weight norm; positive.
        min_weight_norm: Floor of the weight norm, without which weights that start at zero would stay there; positive.
        include: As in :class:`Percentile`.
        exclude: As in :class:`Percentile`.
        optimizer: As in :class:`Percentile`.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021.
    """

    clip_factor: float = 0.01
    min_weight_norm: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("clip_factor", self.clip_factor, "positive and finite", "the paper uses 0.01 for large batches")
        _require_number("min_weight_norm", self.min_weight_norm, "positive and finite", "the paper uses 1e-3")


@dataclass(frozen=True)
class AdaGC(_Selective):
    """Clips each tensor's gradient norm at a multiple of the running mean of its own clipped norms.

    During the warm-up the total norm is clipped at ``lambda_abs`` and each tensor remembers its smallest norm. One
    difference from the paper: a gradient of exactly zero is not remembered, since a tensor that started with one (the
    layers before a projection that is initialised to zero) would be held at zero for ever; a tensor whose first
    gradient comes late starts with that.

    Attributes:
        lambda_rel: Largest allowed ratio of a tensor's norm to its running mean; positive.
        beta: How slowly the running mean follows, ``0 < beta < 1``.
        lambda_abs: Largest total norm during the warm-up; positive. The only number with the loss's unit.
        warmup_steps: Number of steps of the warm-up; 1 or more.
        include: As in :class:`Percentile`.
        exclude: As in :class:`Percentile`.
        optimizer: As in :class:`Percentile`.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv:2502.11034, 2025.
    """

    lambda_rel: float = 1.05
    beta: float = 0.98
    lambda_abs: float = 1.0
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("lambda_rel", self.lambda_rel, "positive and finite", "the paper uses 1.05")
        _require_number("beta", self.beta, "in (0, 1)", "the paper uses 0.98", below=1)
        _require_number("lambda_abs", self.lambda_abs, "positive and finite", "the paper uses 1.0")
        require("warmup_steps", self.warmup_steps, minimum=1, cure="the paper uses 100")


@dataclass(frozen=True)
class MaxNorm(_Selective):
    """Clips the total norm at a fixed number, as ``torch.nn.utils.clip_grad_norm_`` does.

    Attributes:
        max_norm: Largest total norm; positive.
        include: As in :class:`Percentile`.
        exclude: As in :class:`Percentile`.
        optimizer: As in :class:`Percentile`.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013.
    """

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("max_norm", self.max_norm, "positive and finite", "1.0 is the commonest choice")


@dataclass(frozen=True)
class MaxValue(_Selective):
    """Clips every element to ``[-max_value, max_value]``, as ``torch.nn.utils.clip_grad_value_`` does.

    The only policy that turns the gradient even within a unit. Real and imaginary parts are clipped each by itself.

    Attributes:
        max_value: Largest absolute value of an element; positive.
        include: As in :class:`Percentile`.
        exclude: As in :class:`Percentile`.
        optimizer: As in :class:`Percentile`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    max_value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("max_value", self.max_value, "positive and finite", "1.0 is a usual choice")


DEFAULT = Percentile()
_BY_NAME: dict[str, ClipPolicy] = {
    "percentile": Percentile(),
    "zscore": ZScore(),
    "agc": AGC(),
    "adagc": AdaGC(),
    "norm": MaxNorm(),
    "value": MaxValue(),
}


def make_policy(choice: bool | float | str | ClipPolicy) -> ClipPolicy:
    """The policy that a user means.

    Args:
        choice: True for the default; ``"percentile"``, ``"zscore"``, ``"agc"``, ``"adagc"``, ``"norm"`` (at 1.0) or
            ``"value"`` (at 1.0) for that policy with its own defaults; a number for :class:`MaxNorm`; or a policy.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(choice, ClipPolicy):
        return choice
    if choice is True:
        return DEFAULT
    if isinstance(choice, str) and choice in _BY_NAME:
        return _BY_NAME[choice]
    if isinstance(choice, (Real, float)) and choice is not False:
        return MaxNorm(float(choice))
    names = ", ".join(f'"{name}"' for name in _BY_NAME)
    raise refuse(
        "auto_clip",
        f"True, {names}, a number or a policy",
        choice,
        "use True for the default, None for no clipping, a number for a fixed maximum of the total norm",
    )


def make_policies(
    choice: bool | float | str | ClipPolicy | Sequence[float | str | ClipPolicy] | None,
) -> tuple[ClipPolicy, ...]:
    """The policies that a user means; none for None, False and an empty list.

    Args:
        choice: As for :func:`make_policy`, or several policies.

    Raises:
        ValueError: If one of them is none.
    """
    if choice is None or choice is False:
        return ()
    return tuple(map(make_policy, choice)) if is_list(choice) else (make_policy(choice),)  # type: ignore[arg-type]
