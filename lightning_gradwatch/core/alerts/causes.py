"""Causes that several kinds of alerts share: each by a measurement on the run, with what helps against it."""

from __future__ import annotations

import math
from statistics import median

from lightning_gradwatch.core.alerts.kind import Diagnosis, first_of
from lightning_gradwatch.core.history.evidence import Evidence, typical
from lightning_gradwatch.core.records import Finding

HE_GAIN = math.sqrt(2)
LARGE_RHO = 3.0
"""Weights that start at more than this times the gain that keeps a signal's size drive units to their rails."""
BLOWN_UP = 3.0
"""Weights that have grown by this factor are no longer those that were initialised."""

INIT_REMEDIES = ("He initialisation (kaiming_normal_) for ReLU and its kin, Xavier for tanh", "normalisation layers")
SIGMOID_REMEDIES = ("ReLU, GELU or SiLU with He initialisation", "normalisation layers before the sigmoids")
LOWER_RATE = "a lower learning rate"
ORDER_REMEDIES = ("normalise before each block (pre-norm) instead of after it", "a warm-up", LOWER_RATE)
LR_REMEDIES = (LOWER_RATE, "a warm-up", "gradient clipping")
FP16_REMEDIES = ("precision='16-mixed', which scales the loss", "precision='bf16-mixed'")


def weight_decay(evidence: Evidence) -> Diagnosis | None:
    """Weights that have drifted towards zero."""
    shrinkage = typical(evidence.weights.shrinkage, 1.0)
    if shrinkage > 0.5:
        return None
    return Diagnosis(
        "weight_decay",
        f"the weights have drifted towards zero: the middle layer is at {shrinkage:.0%} of its first norm",
        ("less weight decay", "no decay for layers without normalisation behind them", "AdamW instead of an L2 term"),
    )


def input_scale(evidence: Evidence) -> Diagnosis | None:
    """An input of the network that was never normalised."""
    name = next((name for name in evidence.layers if name in evidence.inputs), "")
    if not name or evidence.inputs[name].std < 10:
        return None
    feeding = evidence.layers[: evidence.layers.index(name)]  # such as embeddings, which are given places
    if evidence.first_std.get(name, math.inf) < 10 and blown_up(evidence, feeding):
        return None
    first = evidence.inputs[name]
    return Diagnosis(
        "input_scale",
        f"the first layer's input is not normalised: standard deviation {first.std:.3g}, range {first.low:.3g} to "
        f"{first.high:.3g}",
        ("standardise the input to mean 0 and standard deviation 1", "a BatchNorm as the first layer"),
    )


def half_precision(evidence: Evidence) -> Diagnosis | None:
    """Float16, whose range is narrow."""
    if "float16" not in evidence.dtypes:
        return None
    return Diagnosis("half_precision", "weights or gradients are float16, whose range is 6e-8 to 65504", FP16_REMEDIES)


def _rho(evidence: Evidence, gains: dict[str, float]) -> float:
    """Typical gain relative to what keeps a signal's size: sqrt(2) with ReLU and its kin, 1 otherwise."""
    counts = dict(evidence.architecture.activations)
    rectifies = counts.get("relu", 0) + counts.get("smooth", 0) >= counts.get("tanh", 0) + counts.get("sigmoid", 0)
    inner = dict(list(gains.items())[:-1]) or gains
    return typical(inner) / (HE_GAIN if rectifies and any(counts.values()) else 1.0)


def cliff(evidence: Evidence) -> Diagnosis | None:
    """What is lost in one place, or by a few layers whose gain stands out."""
    if _rho(evidence, evidence.weights.first_gain) > LARGE_RHO:  # the weights are too large everywhere
        return None
    names, logs = list(evidence.profile), [math.log10(n) for n in evidence.profile.values()]
    drops = [(logs[i + 1] - logs[i], i) for i in range(len(logs) - 1)]
    odd = _odd_layers(evidence)
    if odd and not evidence.architecture.norms:
        gains = ", ".join(f"{name} at {evidence.weights.gain[name]:.2g}" for name in odd[:3])
        return Diagnosis(
            "cliff",
            f"the gain of {gains} stands out from the {typical(evidence.weights.gain):.2g} of the middle layer",
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
        f"{largest:.1f} orders of magnitude are lost in one place, between {names[place + 1]} and {names[place]}",
        (f"look at {names[place + 1]}: its weights, its input and the activation before it", "initialise it anew"),
    )


def _odd_layers(evidence: Evidence) -> list[str]:
    """A few layers, none of them the last, whose gain is less than a third of the middle layer's."""
    inner = list(evidence.weights.gain)[:-1]
    odd = [name for name in inner if evidence.weights.gain[name] < typical(evidence.weights.gain) / 3]
    return odd if len(inner) >= 5 and 0 < len(odd) <= len(inner) / 3 else []


def saturating(evidence: Evidence) -> Diagnosis | None:
    """Sigmoids without normalisation."""
    sigmoids = dict(evidence.architecture.activations).get("sigmoid", 0)
    if evidence.architecture.norms or sigmoids < max(2, len(evidence.layers) // 3):
        return None
    return Diagnosis(
        "saturating_activation",
        f"{sigmoids} sigmoids without normalisation pass on at most a quarter of the gradient each",
        SIGMOID_REMEDIES,
    )


def small_init(finding: Finding, evidence: Evidence) -> Diagnosis | None:
    """Weights that started small enough to predict what is lost over the depth."""
    rho, norms, skips = (
        _rho(evidence, evidence.weights.first_gain),
        evidence.architecture.norms,
        evidence.architecture.skips,
    )
    if (norms or _has_skips(evidence)) and rho < 0.2:
        return Diagnosis(
            "small_init",
            f"weights start at {rho:.2f} of the gain that keeps a signal's size, too little for "
            f"{norms} normalisation layers and {skips} skip connections to restore it",
            INIT_REMEDIES[:1],
        )
    if norms or not rho < 0.8:
        return None
    depth = len(evidence.weights.first_gain)
    predicted = 2 / 3 * depth * -math.log10(rho)
    if not 0.4 <= predicted / max(finding.value, 1e-9) <= 2.5:
        return None
    return Diagnosis(
        "small_init",
        f"weights start at {rho:.2f} of the gain that keeps a signal's size, which over {depth} layers "
        f"predicts a loss of {predicted:.1f} orders of magnitude, and {finding.value:.1f} are lost",
        INIT_REMEDIES,
    )


def rails(evidence: Evidence) -> Diagnosis | None:
    """Units of tanh at their rails, or weights that would drive them there."""
    tanhs = dict(evidence.architecture.activations).get("tanh", 0)
    inner = [evidence.inputs[name].beyond for name in evidence.layers[1:] if name in evidence.inputs]
    share = median(inner) if inner else 0.0
    rho = _rho(evidence, evidence.weights.first_gain)
    if not (tanhs and share > 0.5) and not rho > LARGE_RHO:
        return None
    if not rho > LARGE_RHO and typical(evidence.weights.shrinkage, 1.0) >= BLOWN_UP:
        return None  # updates have driven them there, and not the start
    return Diagnosis(
        "large_init",
        f"{share:.0%} of the units sit at the rails, with weights at {rho:.2g} of the gain that keeps a signal's size",
        ("Xavier initialisation", "standardised inputs", "normalisation layers"),
    )


def _has_skips(evidence: Evidence) -> bool:
    return evidence.architecture.skips >= len(evidence.layers) / 6


def structure(evidence: Evidence) -> Diagnosis:
    """What the network is made of, where nothing that was measured decides."""
    norms, skips, depth = evidence.architecture.norms, evidence.architecture.skips, len(evidence.layers)
    if norms and _has_skips(evidence):
        return Diagnosis(
            "normalisation_order",
            f"{norms} normalisation layers and {skips} skip connections are there: suspect their order, or the start",
            ORDER_REMEDIES,
        )
    return Diagnosis(
        "no_skip_or_norm",
        f"{depth} layers in a row with {norms} normalisation layers and {skips} skip connections",
        ("residual connections", "normalisation layers", *INIT_REMEDIES[:1]),
    )


def divergence(evidence: Evidence) -> Diagnosis:
    """What multiplies a gradient, or drives the weights away."""
    return first_of(
        growing_recurrence(evidence),
        weights_too_large(evidence),
        input_scale(evidence),
        learning_rate(evidence),
        structure(evidence),
    )


def growing_recurrence(evidence: Evidence) -> Diagnosis | None:
    """A recurrent layer whose gradient grows into the past, and did from the start."""
    growing = [
        (-decades, name, length)
        for name, (_, length, decades) in evidence.horizons.items()
        if decades <= -2 and (evidence.first_growth.get(name, math.inf) >= 2 or not blown_up(evidence, (name,)))
    ]
    if not growing:
        return None
    growth, name, length = max(growing)
    return Diagnosis(
        "recurrence",
        f"the gradient grows by {growth:.1f} orders of magnitude on its way back through the {length} time steps of "
        f"{name}",
        ("gradient clipping", "an orthogonal initialisation of the recurrent weights", "an LSTM or GRU"),
    )


def weights_too_large(evidence: Evidence) -> Diagnosis | None:
    """Weights that started too large for a network without normalisation."""
    rho = _rho(evidence, evidence.weights.first_gain)
    if evidence.architecture.norms or not rho > 1.5:
        return None
    return Diagnosis(
        "large_init",
        f"weights start at {rho:.2g} times the gain that keeps a signal's size",
        (*INIT_REMEDIES, "clipping"),
    )


def blown_up(evidence: Evidence, layers: tuple[str, ...]) -> bool:
    """Whether updates have made the weights of one of these layers several times as large as they were."""
    return any(evidence.weights.shrinkage.get(name, 1.0) >= BLOWN_UP for name in layers)


def decades_grown(evidence: Evidence) -> float:
    """Decades by which the norm or the loss has grown since the first steps."""
    early = median(evidence.steps.early_norms[:5]) if evidence.steps.early_norms else math.nan
    by_norm = max(evidence.steps.norms, default=math.nan) / early if early > 0 else math.nan
    by_loss = max(map(abs, evidence.losses), default=math.nan) / abs(evidence.first_loss or math.nan)
    grown = [g for g in (by_norm, by_loss) if g > 0]
    return math.log10(max(grown)) if grown else 0.0


def learning_rate(evidence: Evidence) -> Diagnosis | None:
    """Updates that have driven loss or gradient away."""
    growth, update = decades_grown(evidence), typical(evidence.update_ratio, 0.0)
    if growth < 1 and update < 0.1:
        return None
    rate = "" if evidence.steps.lr is None else f" at a learning rate of {evidence.steps.lr:.2g}"
    return Diagnosis(
        "learning_rate",
        f"loss or gradient norm have grown by {growth:.1f} orders of magnitude since the start, and the last update "
        f"seen changed the middle layer by {update:.2g} of its size{rate}",
        LR_REMEDIES,
    )


def rate_jump(evidence: Evidence) -> Diagnosis | None:
    """A slip in a schedule: the steps since then are too few to show growth."""
    before, now = max(evidence.steps.rates[:-3], default=math.inf), max(evidence.steps.rates[-3:], default=0.0)
    if now < 10 * before:
        return None
    return Diagnosis(
        "learning_rate",
        f"the learning rate has just risen from {before:.2g} to {now:.2g}",
        ("a schedule without that jump", *LR_REMEDIES),
    )
