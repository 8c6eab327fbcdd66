"""Findings become alerts: what is wrong, why, and what to try, from evidence that was measured on this run."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from lightning_gradwatch.core.evidence import Evidence, typical
from lightning_gradwatch.core.records import SMALL_SHARE, Alert, AlertKind, Cause, Finding, to_try

HE_GAIN = math.sqrt(2)
SMALL_PUSH = 1e-2
"""Below this share of the loss at stake it is the gradient that is small, above it the learning rate."""
BLOWN_UP = 3.0
"""Weights that have grown by this factor are no longer those that were initialised."""


class Diagnosis(NamedTuple):
    """Why, by which measurement, and what helps against it, the cheapest first."""

    cause: Cause
    evidence: str
    remedies: tuple[str, ...]


def explain(finding: Finding, evidence: Evidence, optimizer: str = "") -> Alert:
    """Put a finding into words.

    Args:
        finding: What the detector saw.
        evidence: What was measured on this run.
        optimizer: Name of the optimizer that owns the layers; ``""`` if there is only one.

    Returns:
        The alert, with cause, evidence and remedies as fields and as one message.
    """
    what, diagnose = _WORDS.get(finding.kind, (_of_any_kind, _undiagnosed))
    return _alert(finding, what(finding, evidence), diagnose(finding, evidence), optimizer)


def explain_nothing(finding: Finding, optimizer: str = "") -> Alert:
    """Put a finding into words of which none depends on evidence; the arguments are those of :func:`explain`."""
    return _alert(finding, _of_any_kind(finding, Evidence()), _undiagnosed(finding, Evidence()), optimizer)


def _alert(finding: Finding, what: str, diagnosis: Diagnosis, optimizer: str) -> Alert:
    return Alert(
        kind=finding.kind,
        level=finding.level,
        step=finding.step,
        until_step=finding.until_step,
        layer=finding.layers[0] if finding.layers else "",
        value=finding.value,
        threshold=finding.threshold,
        message=f"{what} {_sentence(diagnosis.evidence)}{to_try(diagnosis.remedies)}",
        cause=diagnosis.cause,
        evidence=diagnosis.evidence,
        remedies=diagnosis.remedies,
        optimizer=optimizer,
        summary=_summary(what, finding),
    )


def _summary(what: str, finding: Finding) -> str:
    """A sentence of ours without the symptom and the step, where it begins with them."""
    _, found, rest = what.partition(f" (step {finding.step}): ")
    if not found:
        return what
    return rest if rest.startswith(finding.layers) else rest[0].upper() + rest[1:]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _named(layers: tuple[str, ...] | list[str]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def _of_vanishing(finding: Finding, _: Evidence) -> str:
    (early, late), value = finding.layers, finding.value
    return (
        f"Gradients vanish with depth (step {finding.step}): between the last third of the layers (such as {late}) and "
        f"the first third (such as {early}) they shrink by {value:.1f} decades, a factor of {10**value:.0e}; the early "
        "layers starve."
    )


def _of_vanishing_through_time(finding: Finding, evidence: Evidence) -> str:
    layer = finding.layers[0]
    horizon, length, _ = evidence.horizons.get(layer, (0, 0, 0.0))
    when = "whatever the loss does" if _is_overlooked(finding, evidence) else "while the loss is flat"
    return (
        f"Gradients vanish through time in {layer} (step {finding.step}) by {finding.value:.1f} decades {when}: only "
        f"the last {horizon} of {length} time steps carry at least 1 % of the largest gradient."
    )


def _of_exploding(finding: Finding, _: Evidence) -> str:
    return f"Gradients explode (step {finding.step}): they or the loss have grown by {finding.value:.1f} decades."


def _of_nonfinite(finding: Finding, _: Evidence) -> str:
    seen = f"in {_named(finding.layers)}" if finding.layers else "in the loss or the total norm"
    return f"NaN or infinite values since step {finding.step}, {seen}."


def _of_dead(finding: Finding, _: Evidence) -> str:
    layers = finding.layers
    return f"{len(layers)} layers are dead (step {finding.step}): {_named(layers)} get gradients of exactly zero."


def _of_detached(finding: Finding, _: Evidence) -> str:
    verbs = "runs but never gets" if len(finding.layers) == 1 else "run but never get"
    return f"{_named(finding.layers)} {verbs} a gradient (step {finding.step})."


def _of_stalled(finding: Finding, _: Evidence) -> str:
    return f"Training is stalled (step {finding.step}): the loss is no lower than at the start, and nothing moves it."


def _of_underflow(finding: Finding, _: Evidence) -> str:
    share = min(finding.value, 1)
    return f"Values are lost in rounding (step {finding.step}): {share:.0%} of the elements in the middle layer."


def _of_any_kind(finding: Finding, _: Evidence) -> str:
    """What can be said of a kind that has no words of its own: its name and its figures."""
    where = f" in {_named(finding.layers)}" if finding.layers else ""
    return (
        f"Something is wrong{where} (step {finding.step}): `{finding.kind}` is at {finding.value:.3g}, and "
        f"{finding.threshold:.3g} is where it alerts."
    )


_INIT_REMEDIES = ("He initialisation (kaiming_normal_) for ReLU and its kin, Xavier for tanh", "normalisation layers")
_LR_REMEDIES = ("a lower learning rate", "a warm-up", "gradient clipping")
_FP16_REMEDIES = ("precision='16-mixed', which scales the loss", "precision='bf16-mixed'")


def _weight_decay(evidence: Evidence) -> Diagnosis | None:
    shrinkage = typical(evidence.shrinkage, 1.0)
    if shrinkage > 0.5:
        return None
    return Diagnosis(
        "weight_decay",
        f"the weights have drifted towards zero: the middle layer is at {shrinkage:.0%} of its first norm",
        ("less weight decay", "no decay for layers without normalisation behind them", "AdamW instead of an L2 term"),
    )


def _input_scale(evidence: Evidence) -> Diagnosis | None:
    name = next((name for name in evidence.layers if name in evidence.inputs), "")
    if not name or evidence.inputs[name].std < 10:
        return None
    feeding = evidence.layers[: evidence.layers.index(name)]  # such as embeddings, which are given places
    if evidence.first_std.get(name, math.inf) < 10 and _blown_up(evidence, feeding):
        return None
    first = evidence.inputs[name]
    return Diagnosis(
        "input_scale",
        f"the first layer's input is not normalised: standard deviation {first.std:.3g}, range {first.low:.3g} to "
        f"{first.high:.3g}",
        ("standardise the input to mean 0 and standard deviation 1", "a BatchNorm as the first layer"),
    )


def _half_precision(evidence: Evidence) -> Diagnosis | None:
    if "float16" not in evidence.dtypes:
        return None
    return Diagnosis("half_precision", "weights or gradients are float16, whose range is 6e-8 to 65504", _FP16_REMEDIES)


def _rho(evidence: Evidence, gains: dict[str, float]) -> float:
    """Typical gain relative to what keeps a signal's size: sqrt(2) with ReLU and its kin, 1 otherwise."""
    counts = dict(evidence.anatomy.activations)
    rectifies = counts.get("relu", 0) + counts.get("smooth", 0) >= counts.get("tanh", 0) + counts.get("sigmoid", 0)
    inner = dict(list(gains.items())[:-1]) or gains
    return typical(inner) / (HE_GAIN if rectifies and any(counts.values()) else 1.0)


def _cliff(evidence: Evidence) -> Diagnosis | None:
    names, logs = list(evidence.profile), [math.log10(n) for n in evidence.profile.values()]
    drops = [(logs[i + 1] - logs[i], i) for i in range(len(logs) - 1)]
    odd = _odd_layers(evidence)
    if odd and not evidence.anatomy.norms:
        gains = ", ".join(f"{name} at {evidence.gain[name]:.2g}" for name in odd[:3])
        return Diagnosis(
            "cliff",
            f"the gain of {gains} stands out from the {typical(evidence.gain):.2g} of the middle layer",
            ("initialise the named layers like the others", "check what has scaled their weights"),
        )
    if len(names) < 6:
        return None
    _, place = max(drops)
    steps = [median(logs[i + 1 : i + 4]) - median(logs[max(0, i - 2) : i + 1]) for i in range(len(drops))]
    largest = steps[place]
    rest = sum(drop for drop, _ in drops) - largest
    climb = -min(steps)  # where branches come one after the other: what one place loses is found again at another
    if largest < 1.5 * max(1.0, rest, climb):
        return None
    return Diagnosis(
        "cliff",
        f"{largest:.1f} decades are lost in one place, between {names[place + 1]} and {names[place]}",
        (f"look at {names[place + 1]}: its weights, its input and the activation before it", "initialise it anew"),
    )


def _odd_layers(evidence: Evidence) -> list[str]:
    """A few layers, none of them the last, whose gain is less than a third of the middle layer's."""
    inner = list(evidence.gain)[:-1]
    odd = [name for name in inner if evidence.gain[name] < typical(evidence.gain) / 3]
    return odd if len(inner) >= 5 and 0 < len(odd) <= len(inner) / 3 else []


def _saturating(evidence: Evidence) -> Diagnosis | None:
    sigmoids = dict(evidence.anatomy.activations).get("sigmoid", 0)
    if evidence.anatomy.norms or sigmoids < max(2, len(evidence.layers) // 3):
        return None
    return Diagnosis(
        "saturating_activation",
        f"{sigmoids} sigmoids without normalisation pass on at most a quarter of the gradient each",
        ("ReLU, GELU or SiLU with He initialisation", "normalisation layers before the sigmoids"),
    )


def _small_init(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    rho, norms, skips = _rho(evidence, evidence.first_gain), evidence.anatomy.norms, evidence.anatomy.skips
    if (norms or _has_skips(evidence)) and rho < 0.2:
        return Diagnosis(
            "small_init",
            f"weights start at {rho:.2f} of the gain that keeps a signal's size, too little for "
            f"{norms} normalisation layers and {skips} skip connections to restore it",
            _INIT_REMEDIES[:1],
        )
    if norms or not rho < 0.8:
        return None
    depth = len(evidence.first_gain)
    predicted = 2 / 3 * depth * -math.log10(rho)
    if not 0.4 <= predicted / max(finding.value, 1e-9) <= 2.5:
        return None
    return Diagnosis(
        "small_init",
        f"weights start at {rho:.2f} of the gain that keeps a signal's size, which over {depth} layers predicts "
        f"{predicted:.1f} of the {finding.value:.1f} decades",
        _INIT_REMEDIES,
    )


def _rails(evidence: Evidence) -> Diagnosis | None:
    tanhs = dict(evidence.anatomy.activations).get("tanh", 0)
    inner = [evidence.inputs[name].beyond for name in evidence.layers[1:] if name in evidence.inputs]
    share = median(inner) if inner else 0.0
    rho = _rho(evidence, evidence.first_gain)
    if not (tanhs and share > 0.5) and not rho > 3:
        return None
    return Diagnosis(
        "large_init",
        f"{share:.0%} of the units sit at the rails, with weights at {rho:.2g} of the gain that keeps a signal's size",
        ("Xavier initialisation", "standardised inputs", "normalisation layers"),
    )


def _has_skips(evidence: Evidence) -> bool:
    return evidence.anatomy.skips >= len(evidence.layers) / 6


def _structure(evidence: Evidence) -> Diagnosis:
    norms, skips, depth = evidence.anatomy.norms, evidence.anatomy.skips, len(evidence.layers)
    if norms and _has_skips(evidence):
        return Diagnosis(
            "normalisation_order",
            f"{norms} normalisation layers and {skips} skip connections are there: suspect their order, or the start",
            ("normalise before each block (pre-norm) instead of after it", "a warm-up", "a lower learning rate"),
        )
    return Diagnosis(
        "no_skip_or_norm",
        f"{depth} layers in a row with {norms} normalisation layers and {skips} skip connections",
        ("residual connections", "normalisation layers", *_INIT_REMEDIES[:1]),
    )


def _first(*diagnoses: Diagnosis | None) -> Diagnosis:
    return next(d for d in diagnoses if d is not None)


def _vanishing(finding: Finding, evidence: Evidence) -> Diagnosis:
    return _first(
        _weight_decay(evidence),
        _cliff(evidence),
        _input_scale(evidence),
        _saturating(evidence),
        _small_init(finding, evidence),
        _rails(evidence),
        _learning_rate(evidence) if typical(evidence.shrinkage, 1.0) >= BLOWN_UP else None,
        _structure(evidence),
    )


def _through_time(finding: Finding, evidence: Evidence) -> Diagnosis:
    layer = finding.layers[0]
    is_of_updates = evidence.first_growth.get(layer, -math.inf) > -finding.threshold and _blown_up(evidence, (layer,))
    by_updates = _learning_rate(evidence) if is_of_updates else None
    if by_updates is not None:
        return by_updates
    length = evidence.horizons.get(layer, (0, 0, 0.0))[1]
    others = (
        f"; with {100 * evidence.shares[layer]:.1g} % of the squared gradient it is not what lowers the loss"
        if _is_overlooked(finding, evidence)
        else ""
    )
    return Diagnosis(
        "recurrence",
        f"the gradient is multiplied by the same weights {length} times on its way back through {layer}{others}",
        (
            f"a forget gate bias of about log({length}) = {math.log(max(length, 2)):.1f} in an LSTM or GRU",
            "an LSTM or GRU instead of a plain RNN, or an orthogonal initialisation",
            "attention, or shorter sequences",
        ),
    )


def _is_overlooked(finding: Finding, evidence: Evidence) -> bool:
    """Whether a layer forgets much and has so little of the gradient that a falling loss is the work of others."""
    return finding.value >= 2 * finding.threshold and evidence.shares.get(finding.layers[0], 1.0) < SMALL_SHARE


def _exploding(_: Finding, evidence: Evidence) -> Diagnosis:
    return _divergence(evidence)


def _divergence(evidence: Evidence) -> Diagnosis:
    return _first(
        _growing_recurrence(evidence),
        _weights_too_large(evidence),
        _input_scale(evidence),
        _learning_rate(evidence),
        _structure(evidence),
    )


def _growing_recurrence(evidence: Evidence) -> Diagnosis | None:
    growing = [
        (-decades, name, length)
        for name, (_, length, decades) in evidence.horizons.items()
        if decades <= -2 and (evidence.first_growth.get(name, math.inf) >= 2 or not _blown_up(evidence, (name,)))
    ]
    if not growing:
        return None
    growth, name, length = max(growing)
    return Diagnosis(
        "recurrence",
        f"the gradient grows by {growth:.1f} decades on its way back through the {length} time steps of {name}",
        ("gradient clipping", "an orthogonal initialisation of the recurrent weights", "an LSTM or GRU"),
    )


def _weights_too_large(evidence: Evidence) -> Diagnosis | None:
    rho = _rho(evidence, evidence.first_gain)
    if evidence.anatomy.norms or not rho > 1.5:
        return None
    return Diagnosis(
        "large_init",
        f"weights start at {rho:.2g} times the gain that keeps a signal's size",
        (*_INIT_REMEDIES, "clipping"),
    )


def _blown_up(evidence: Evidence, layers: tuple[str, ...]) -> bool:
    """Whether updates have made the weights of one of these layers several times as large as they were."""
    return any(evidence.shrinkage.get(name, 1.0) >= BLOWN_UP for name in layers)


def _growth(evidence: Evidence) -> float:
    """Decades by which the norm or the loss has grown since the first steps."""
    early = median(evidence.early_norms[:5]) if evidence.early_norms else math.nan
    by_norm = max(evidence.norms, default=math.nan) / early if early > 0 else math.nan
    by_loss = max(map(abs, evidence.losses), default=math.nan) / abs(evidence.first_loss or math.nan)
    grown = [g for g in (by_norm, by_loss) if g > 0]
    return math.log10(max(grown)) if grown else 0.0


def _learning_rate(evidence: Evidence) -> Diagnosis | None:
    growth, update = _growth(evidence), typical(evidence.update_ratio, 0.0)
    if growth < 1 and update < 0.1:
        return None
    rate = "" if evidence.lr is None else f" at a learning rate of {evidence.lr:.2g}"
    return Diagnosis(
        "learning_rate",
        f"loss or gradient norm have grown by {growth:.1f} decades since the start, and the last update seen changed "
        f"the middle layer by {update:.2g} of its size{rate}",
        _LR_REMEDIES,
    )


def _rate_jump(evidence: Evidence) -> Diagnosis | None:
    """A slip in a schedule: the steps since then are too few to show growth."""
    before, now = max(evidence.rates[:-3], default=math.inf), max(evidence.rates[-3:], default=0.0)
    if now < 10 * before:
        return None
    return Diagnosis(
        "learning_rate",
        f"the learning rate has just risen from {before:.2g} to {now:.2g}",
        ("a schedule without that jump", *_LR_REMEDIES),
    )


def _nonfinite(finding: Finding, evidence: Evidence) -> Diagnosis:
    if finding.step in evidence.bad_inputs and not evidence.takes_bad_inputs:
        return Diagnosis(
            "bad_data",
            f"the batch of step {finding.step} itself holds NaN or infinite values",
            ("find that batch and clean the data", "check the data for NaN when loading it"),
        )
    starts_too_large = bool(_weights_too_large(evidence) or _growing_recurrence(evidence))
    is_diverging = _growth(evidence) >= 2 or max(evidence.early_norms[:3], default=0.0) > 1e6
    return _first(
        _half_precision(evidence),
        _rate_jump(evidence),
        _divergence(evidence) if is_diverging or (finding.step <= 1 and starts_too_large) else None,
        _other_rank(finding, evidence),
        _unstable(finding, evidence),
    )


def _other_rank(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    if evidence.num_ranks == 1 or finding.step not in evidence.sound_losses:
        return None
    here = "batch and loss of this rank were" if finding.step in evidence.sound_inputs else "the loss of this rank was"
    return Diagnosis(
        "unknown",
        f"{here} finite, so it comes from another of the {evidence.num_ranks} ranks, or from the backward pass",
        (
            "print `alerts` of GradWatch on every rank: the one whose batch or loss was not finite says so",
            "torch.autograd.set_detect_anomaly(True) for one run, which names an operation",
        ),
    )


def _unstable(finding: Finding, evidence: Evidence) -> Diagnosis:
    near = f", first in {finding.layers[0]}, the nearest to the loss," if finding.layers else ""
    if finding.step in evidence.bad_losses:
        where = f"the loss was not finite before any gradient was, while {_sound_before(finding, evidence)}"
    elif finding.step in evidence.sound_losses:
        where = f"the loss was finite and only the backward pass{near} was not"
    else:
        where = f"the backward pass{near} was not finite; of the loss nothing is known"
    return Diagnosis(
        "unstable_op",
        where,
        (
            "an operation that is safe at the edge: log(x + eps), sqrt(x + eps), a fused loss on logits",
            "torch.autograd.set_detect_anomaly(True) for one run, which names the operation",
        ),
    )


def _sound_before(finding: Finding, evidence: Evidence) -> str:
    """What is known to have been finite when the loss was not."""
    if finding.step in evidence.sound_inputs:
        return "the batch and the steps before were"
    if finding.step in evidence.bad_inputs:
        return "the steps before were, though their batches, too, held NaN or infinite values"
    return "the steps before were; not all of the batch could be looked at"


def _zero_init(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    if len(evidence.zeroed) < 2 or not {*finding.layers} & {*evidence.zeroed}:
        return None
    return Diagnosis(
        "small_init",
        f"zero initialisation on both factors of a product: the weights of {_named(evidence.zeroed)} are exactly zero, "
        "and each keeps the gradient of the other at zero",
        (
            "a random initialisation of one of them (kaiming_uniform_, as for A in LoRA); the other may start at zero",
            *_INIT_REMEDIES[:1],
        ),
    )


def _dead(finding: Finding, evidence: Evidence) -> Diagnosis:
    at_fault = [(name, i.dead_units) for name, i in evidence.inputs.items() if i.dead_units >= 0.95]
    rectifies = dict(evidence.anatomy.activations).get("relu", 0)
    relu = None
    if at_fault and rectifies:
        name, share = at_fault[0]
        relu = Diagnosis(
            "dead_relu",
            f"{share:.0%} of the units at the input of {name} are zero for every sample",
            ("a lower learning rate", "LeakyReLU or GELU", "normalise before that activation; check its biases"),
        )
    unknown = Diagnosis(
        "unknown",
        "the measurements do not tell why",
        ("a smaller learning rate", "a look at the activations of the named layers"),
    )
    return _first(
        _half_precision(evidence), _zero_init(finding, evidence), _input_scale(evidence), relu,
        _weight_decay(evidence), _rails(evidence),
        _learning_rate(evidence), unknown,
    )  # fmt: skip


def _detached(*_: object) -> Diagnosis:
    return Diagnosis(
        "detached",
        "in none of ten samples did a gradient arrive at their output",
        (
            "remove .detach(), torch.no_grad(), .item(), argmax or numpy between these layers and the loss",
            "let the loss use their output, if nothing does",
            "requires_grad_(False), or exclude=..., if that is on purpose",
        ),
    )


def _stalled(_: Finding, evidence: Evidence) -> Diagnosis:
    largest = max(evidence.update_ratio.values(), default=math.nan)
    if largest <= 3e-5 and not evidence.effect <= SMALL_PUSH:
        rate = "" if evidence.lr is None else f" at a learning rate of {evidence.lr:.2g}"
        return Diagnosis(
            "learning_rate",
            f"the largest update of any layer is {largest:.1g} of its weights{rate}, where 1e-3 is usual",
            ("a higher learning rate", "a look at the schedule", "a float32 copy of the weights, if they are bf16"),
        )
    saturated = Diagnosis(
        "saturated_output",
        "the gradient is tiny right at the last layer already, so the output or the loss has saturated",
        ("a loss on logits (cross_entropy, binary_cross_entropy_with_logits)", "a smaller last layer at the start"),
    )
    return _first(_weight_decay(evidence), _saturating(evidence), saturated)


def _underflow(finding: Finding, evidence: Evidence) -> Diagnosis:
    is_eps = typical(evidence.below_eps, 0.0) >= finding.value
    if ("float16" in evidence.dtypes or evidence.has_half_gradients) and not is_eps:
        return Diagnosis(
            "half_precision", f"{min(finding.value, 1):.0%} of the float16 gradients are exactly zero", _FP16_REMEDIES
        )
    if "bfloat16" in evidence.dtypes and not is_eps:
        return Diagnosis(
            "half_precision",
            f"{min(finding.value, 1):.0%} of the bfloat16 weights did not change in a step that pushed them",
            ("precision='bf16-mixed', which keeps float32 weights", "a higher learning rate"),
        )
    return Diagnosis(
        "adam_eps",
        f"the root mean square gradient of {min(finding.value, 1):.0%} of the elements lies below Adam's eps",
        ("a smaller eps", "a larger loss: multiply it by a constant"),
    )


def _undiagnosed(finding: Finding, _: Evidence) -> Diagnosis:
    where = "a look at the named layers" if finding.layers else "a look at the gradient norms and the loss"
    return Diagnosis("unknown", "the measurements do not tell why", (where, "a smaller learning rate"))


_WORDS: dict[AlertKind, tuple[Callable[[Finding, Evidence], str], Callable[[Finding, Evidence], Diagnosis]]] = {
    "vanishing": (_of_vanishing, _vanishing),
    "vanishing_through_time": (_of_vanishing_through_time, _through_time),
    "exploding": (_of_exploding, _exploding),
    "nonfinite": (_of_nonfinite, _nonfinite),
    "dead": (_of_dead, _dead),
    "detached": (_of_detached, _detached),
    "stalled": (_of_stalled, _stalled),
    "underflow": (_of_underflow, _underflow),
}
"""What is wrong, and why, for each kind of alert."""
