"""Profiles of the gradient along the depth of a network or along time, and how many decades they lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from lightning_gradwatch.core.records import Layer


@dataclass(frozen=True)
class Profile:
    """Gradient norms along the depth of the network, the input end first.

    Attributes:
        layers: Layer names in the order in which they ran.
        norms: One norm per layer, each finite and above zero.
        at_outputs: Whether the norms were taken at layer outputs; otherwise they are those of the weights' gradients.
    """

    layers: tuple[str, ...]
    norms: tuple[float, ...]
    at_outputs: bool


def depth_profile(layers: Sequence[Layer], output_norms: Sequence[float], gradient_norms: Sequence[float]) -> Profile:
    """The layers that own a matrix, without those that did not run, got no gradient, or an exact zero.

    Args:
        layers: The watched layers, in the order in which they ran.
        output_norms: Gradient norm at each layer's output; negative where it was not observed.
        gradient_norms: Gradient norm of each layer's parameters, the fallback if fewer than three outputs, or those of
            less than half of the layers with a gradient, were seen; of layers whose matrix is their own.

    Returns:
        The profile; it may be empty.
    """
    at_outputs = _kept(layers, output_norms)
    at_weights = [i for i in _kept(layers, gradient_norms) if not layers[i].shares_matrix]
    is_seen = len(at_outputs) >= max(3, len(at_weights) / 2)
    kept, norms = (at_outputs, output_norms) if is_seen else (at_weights, gradient_norms)
    return Profile(tuple([layers[i].name for i in kept]), tuple([norms[i] for i in kept]), is_seen)


def without(profile: Profile, lost: Mapping[str, float]) -> Profile:
    """The profile as it would be without what is lost in some operations.

    Args:
        profile: Of norms at layer outputs, or of weights, which is left as it is.
        lost: Decades that these lose on the way from the loss to each layer; 0 for those that are not named.
    """
    if not profile.at_outputs or not any(lost.values()):
        return profile
    norms = (norm * 10 ** lost.get(name, 0.0) for name, norm in zip(profile.layers, profile.norms, strict=True))
    return replace(profile, norms=tuple(norms))


def _kept(layers: Sequence[Layer], norms: Sequence[float]) -> list[int]:
    """Places of layers that own a matrix, and whose norm is finite and above zero."""
    return [i for i, norm in enumerate(norms) if 0 < norm < math.inf and layers[i].has_matrix]


def decades_lost(norms: Sequence[float]) -> float | None:
    """Decades by which the gradient shrinks from the loss end to the input end of the network.

    The difference between the medians of log10 of the last third and of the first third, so that no single layer
    decides.

    Args:
        norms: Gradient norms in the order in which the layers ran, each above zero.

    Returns:
        Decades; negative if the gradient grows towards the input; None for fewer than three layers.
    """
    if len(norms) < 3:
        return None
    third = math.ceil(len(norms) / 3)
    logs = [math.log10(norm) for norm in norms]
    return median(logs[-third:]) - median(logs[:third])


def lost_in_the_middle(norms: Sequence[float]) -> float:
    """Decades by which the middle third lies below both others, as in a layer that reads a sequence in both directions.

    Args:
        norms: Gradient norms along time, each above zero.

    Returns:
        Decades; negative if one of the ends is no larger; 0 for fewer than three norms.
    """
    if len(norms) < 3:
        return 0.0
    third = math.ceil(len(norms) / 3)
    logs = [math.log10(norm) for norm in norms]
    middle = logs[third:-third] or logs[1:-1]
    return min(median(logs[:third]), median(logs[-third:])) - median(middle)


def largest_jump(norms: Sequence[float]) -> float:
    """The most decades that are lost in one place: between neighbouring moving medians of log10 norms.

    Medians over a tenth of the layers, so that a single layer that stands out is no jump.

    Args:
        norms: Gradient norms in the order in which the layers ran, each above zero.

    Returns:
        Decades; 0 for a gradient that only grows towards the input, or for too few layers.
    """
    window = max(1, len(norms) // 10)
    logs = [math.log10(norm) for norm in norms]
    medians = [median(logs[i : i + window]) for i in range(len(logs) - window + 1)]
    return max((medians[i + window] - medians[i] for i in range(len(medians) - window)), default=0.0)


def slope(norms: Sequence[float]) -> float:
    """Theil-Sen slope of log10 norms: the median of the slopes between all pairs, in decades per place."""
    logs = [math.log10(norm) for norm in norms]
    places = range(0, len(logs), max(1, len(logs) // 60))
    pairs = [(logs[j] - logs[i]) / (j - i) for i in places for j in places if i < j]
    return median(pairs) if pairs else 0.0


def positive(norms: Sequence[float]) -> list[float]:
    """The finite norms above zero, in order."""
    return [norm for norm in norms if norm > 0 and math.isfinite(norm)]


def outer_ends(profile: Profile) -> tuple[str, ...]:
    """The layer with the least gradient in the first third, and that with the most in the last; empty if too short."""
    if len(profile.norms) < 3:
        return ()
    third = math.ceil(len(profile.norms) / 3)
    first = min(range(third), key=profile.norms.__getitem__)
    last = max(range(len(profile.norms) - third, len(profile.norms)), key=profile.norms.__getitem__)
    return profile.layers[first], profile.layers[last]
