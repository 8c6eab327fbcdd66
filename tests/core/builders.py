"""What tests of rules and causes are made of: layers, observations, losses, profiles, findings."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.core.alerts.kind import BuiltInRule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.losses import LossHistory
from lightning_gradwatch.core.history.profile import Profile
from lightning_gradwatch.core.records import Finding, Layer, Observation
from lightning_gradwatch.core.samples import Sample, ThoroughSample

LAYERS = tuple(Layer(f"l{i}", (f"l{i}.weight",), has_matrix=True) for i in range(6))
NAMES = frozenset(layer.name for layer in LAYERS)


def thorough(**known: float) -> ThoroughSample:
    """What a thorough sample saw, alike in all layers; the rest is unknown."""
    unknown = torch.full((6,), -1.0)
    names = ("gain", "update_ratio", "unchanged", "below_eps", "signal", "output_zeros")
    told: dict[str, Any] = {n: unknown.clone().fill_(known.get(n, -1.0)) for n in names}
    return ThoroughSample(**told, inputs=torch.full((6, 7), -1.0))


def observed(
    step: int,
    *,
    total: float = 1.0,
    loss: float | None = 1.0,
    gradients: list[float] | None = None,
    decades: float = 0.0,
    outputs: list[float] | None = None,
    zeros: list[float] | None = None,
    sequences: tuple[tuple[str, Tensor], ...] = (),
    lr: float | None = 0.1,
    dtype: str = "float32",
    **checked: float,
) -> Observation:
    """One step with a sample of six layers whose gradient loses ``decades``."""
    at_outputs = [1e-3 * 10 ** (decades * place) for place in (0, 0, 0.5, 0.5, 1, 1)]
    sample = Sample(
        step=step,
        output_grad_norm=torch.tensor(at_outputs if outputs is None else outputs),
        weight_norm=torch.ones(6),
        zero_fraction=torch.tensor([0.0] * 6 if zeros is None else zeros),
        ran=NAMES,
        sequences=sequences,
        thorough=thorough(**checked) if checked else None,
    )
    return Observation(
        step=step,
        layers=LAYERS,
        steps=(step,),
        norms=torch.tensor([[total, *([0.1] * 6 if gradients is None else gradients)]]),
        losses=(loss,),
        bad_inputs=(None,),
        lr=lr,
        dtypes=frozenset({dtype}),
        architecture=None,
        sample=sample,
        histogram=None,
        publish=False,
    )


def sample_of(observation: Observation) -> Sample:
    """The sample that it has."""
    assert observation.sample is not None
    return observation.sample


def profile(decades: float, at_outputs: bool = True) -> Profile:
    """Six layers, of which the last third has ``decades`` decades more gradient than the first."""
    norms = [1e-3] * 2 + [1e-3 * 10 ** (decades / 2)] * 2 + [1e-3 * 10**decades] * 2
    return Profile(tuple(layer.name for layer in LAYERS), tuple(norms), at_outputs)


def steps_of(step: int, *totals: float, layer: int = 0, decades: float = 0.0) -> Observation:
    """One step per total with a sample of the last; a bad total comes from ``layer``."""
    norms = torch.ones(len(totals), 7)
    norms[:, 0] = norms[:, 1 + layer] = torch.tensor(totals)
    steps = tuple(range(step, step + len(totals)))
    outputs = torch.tensor(profile(decades).norms)
    sample = Sample(steps[-1], outputs, torch.ones(6), torch.zeros(6))
    return Observation(
        step=steps[-1],
        layers=LAYERS,
        steps=steps,
        norms=norms,
        losses=(1.0,) * len(totals),
        bad_inputs=(None,) * len(totals),
        lr=0.1,
        dtypes=frozenset({"float32"}),
        architecture=None,
        sample=sample,
        histogram=None,
        publish=False,
    )


def losses_of(*losses: float | None) -> LossHistory:
    """What is known of a loss after these steps."""
    so_far = LossHistory()
    so_far.add(losses)
    return so_far


def through_time(decades: float, length: int = 12) -> list[float]:
    """The last third has ``decades`` decades more than the first."""
    third = length // 3
    return [1e-6] * third + [1e-6 * 10 ** (decades / 2)] * (length - 2 * third) + [1e-6 * 10**decades] * third


def silent(*layers: int) -> dict[str, Any]:
    """Layers of six with a gradient of exactly zero, for ``observed``."""
    return {
        "outputs": [0.0 if i in layers else 1.0 for i in range(6)],
        "zeros": [1.0 if i in layers else 0.0 for i in range(6)],
        "gradients": [0.0 if i in layers else 1.0 for i in range(6)],
    }


DETACHED: dict[str, Any] = {"outputs": [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0], "gradients": [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]}


def finding(kind: str, *layers: str, value: float = 2.5) -> Finding:
    """One at step 7."""
    return Finding(kind, "alert", 7, None, layers, value, 2.0)


def saved_and_loaded(state: Any) -> Any:
    """A state after a way through a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def judged(rule: BuiltInRule, observation: Observation, history: History) -> list[Finding]:
    """What a rule finds in an observation that the history has taken in."""
    found = rule.update(observation, history)
    return [found] if isinstance(found, Finding) else list(found or ())
