from __future__ import annotations

import math

import torch

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Layer, Observation
from tests.core.builders import finding


def test_what_is_known_of_a_bad_step_is_not_forgotten_before_it_is_told() -> None:
    """The copy that brings it home may hold hundreds of steps that came after it."""
    steps, bad = 300, 7
    norms = torch.ones(steps, 2)
    norms[bad] = math.nan
    observation = Observation(
        step=steps - 1,
        layers=(Layer("4", ("4.weight",)),),
        steps=tuple(range(steps)),
        norms=norms,
        losses=(1.0,) * steps,
        bad_inputs=(False,) * steps,
        lr=0.1,
        dtypes=frozenset(),
        architecture=None,
        sample=None,
        histogram=None,
        publish=True,
    )
    evidence = History().evidence
    evidence.add(observation)
    assert explain(finding("nonfinite", "4"), evidence).evidence.startswith(
        "the loss was finite and only the backward pass, first in 4"
    )
