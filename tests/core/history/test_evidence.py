from __future__ import annotations

import math
from dataclasses import replace

import torch

from lightning_gradwatch.core.alerts.explain import explain
from lightning_gradwatch.core.attribution.graph import Operation
from lightning_gradwatch.core.attribution.way import Attribution
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Layer, Observation
from lightning_gradwatch.core.samples import ThoroughSample
from tests.core.builders import LAYERS, finding, observed, sample_of


def seen(std: float | None) -> Observation:
    """A sample that has sought causes, and seen inputs of this standard deviation, or nothing."""
    observation = observed(9, gain=1.0)
    checkup = sample_of(observation).thorough
    assert isinstance(checkup, ThoroughSample)
    inputs = torch.full((6, 7), -1.0 if std is None else std)
    told = None if std is None else Attribution([Operation("loss", (), (), 0)], [std])
    thorough = replace(checkup, inputs=inputs, attribution=told)
    return replace(observation, sample=replace(sample_of(observation), thorough=thorough))


def test_what_was_seen_last_is_known_until_something_is_seen_again() -> None:
    evidence, known = History().evidence, []
    for std in (2.0, None, 3.0):
        evidence.add(seen(std))
        known.append((evidence.inputs[LAYERS[0].name].std, evidence.attribution is not None))
    assert known == [(2.0, True), (2.0, True), (3.0, True)]


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
