"""The default policy: what is usual is left alone, what is not is brought back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.clip import Band
from lightning_gradwatch.core.clip.band import quantiles
from lightning_gradwatch.core.clip.clipper import Clipper
from tests.core.clip.training import clip, make_clipper
from tests.tasks import with_gradients


class Norms:
    """A clipper that is given gradients of chosen norms."""

    def __init__(self, policy: Band | None = None) -> None:
        self.parameters = with_gradients(torch.ones(1))
        self.clipper: Clipper = make_clipper(policy or Band(), self.parameters)

    def clip(self, norm: float) -> float:
        """The norm after clipping."""
        self.parameters[0].grad = torch.tensor([norm])
        clip(self.clipper, self.parameters)
        return float(self.parameters[0].grad[0])

    def clip_all(self, norms: Iterable[float]) -> list[float]:
        return [self.clip(norm) for norm in norms]


def usual(count: int, scatter: float = 0.3, seed: int = 0) -> list[float]:
    """Norms of a healthy training: their logarithms scatter."""
    return [math.exp(x) for x in np.random.default_rng(seed).normal(0, scatter, count).tolist()]


def share_clipped(norms: list[float], policy: Band | None = None) -> float:
    """After the first hundred steps."""
    return float(np.mean(np.less(Norms(policy).clip_all(norms), np.array(norms, np.float32))[100:]))


@given(
    st.lists(st.floats(-5, 5, width=32) | st.just(math.nan), min_size=1, max_size=20),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
)
def test_quantiles_are_numpys_and_ignore_what_is_not_known(history: list[float], fractions: list[float]) -> None:
    found = quantiles(torch.tensor(history), torch.tensor(fractions)).tolist()
    known = [value for value in history if not math.isnan(value)]
    expected = np.quantile(known, fractions) if known else [math.nan] * len(fractions)
    assert found == pytest.approx(list(expected), rel=1e-4, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("scatter", [0.0, 0.05, 0.3, 1.0, 2.0])
def test_usual_norms_are_left_alone(scatter: float) -> None:
    assert share_clipped(usual(1000, scatter)) < 0.05


@pytest.mark.parametrize("factor", [1e-2, 1e-4, 10.0])
def test_norms_that_drift_are_left_alone(factor: float) -> None:
    drift = np.geomspace(1, factor, 1000)
    assert share_clipped([norm * level for norm, level in zip(usual(1000), drift.tolist(), strict=True)]) < 0.05


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    norms = [*usual(150), 50.0, *usual(20, seed=1)]
    here, there = Norms().clip_all(norms), Norms().clip_all([norm * scale for norm in norms])
    assert there == pytest.approx([norm * scale for norm in here], rel=1e-3)


@pytest.mark.parametrize("count", [1, 10])
def test_a_burst_of_spikes_is_brought_down_to_the_median_and_soon_forgotten(count: int) -> None:
    training = Norms()
    training.clip_all(usual(300))
    held = training.clip_all([1e6] * count)
    assert max(held) < 1.2  # the median is 1
    after = usual(300, scatter=0.15, seed=1)
    assert training.clip_all(after)[150:] == pytest.approx(after[150:])


def test_the_first_steps_of_a_run_that_diverges_are_held() -> None:
    """Though its norms grow as if nothing held them."""
    norms = [2.0**step for step in range(20)]
    assert max(Norms().clip_all(norms)) < max(norms) / 100


def test_a_burst_with_steps_that_say_nothing_in_it_is_held() -> None:
    training = Norms()
    training.clip_all(usual(300))
    held = training.clip_all([1e6, math.nan, 1e6, 0.0, 1e6, math.inf, 1e3, 1e6])
    assert max(norm for norm in held if math.isfinite(norm)) < 1.2
    assert held[3] == 0.0
    assert math.isnan(held[1])
    assert held[5] == math.inf


def test_spikes_of_norms_that_have_fallen_by_a_hundred_are_brought_down_to_where_these_are_now() -> None:
    fallen = np.geomspace(1, 0.01, 1000)
    training = Norms()
    training.clip_all([norm * level for norm, level in zip(usual(1000), fallen.tolist(), strict=True)])
    assert training.clip(1.0) < 0.02


@pytest.mark.parametrize("cut", [0, 20, 300, 305])
def test_the_default_is_resumed_bit_by_bit_at_the_start_in_calm_and_in_a_burst(cut: int) -> None:
    norms = [*usual(300), *[1e6] * 10, *usual(100, seed=1)]
    whole, former, later = Norms(), Norms(), Norms()
    former.clip_all(norms[:cut])
    later.clipper.load_state_dict(former.clipper.state_dict())
    assert later.clip_all(norms[cut:]) == whole.clip_all(norms)[cut:]


def test_the_hotter_the_lower_the_limit() -> None:
    training = Norms()
    training.clip_all(usual(400))
    cool = training.clip(1.8)
    training.clip_all([50.0] * 8)
    assert cool == pytest.approx(1.8)
    assert training.clip(1.8) < 1.0


def test_a_level_that_has_changed_for_good_is_the_usual_one() -> None:
    training = Norms()
    training.clip_all(usual(300))
    training.clip_all([100 * norm for norm in usual(400, seed=1)])
    after = [100 * norm for norm in usual(100, seed=2)]
    assert training.clip_all(after) == pytest.approx(after, rel=0.2)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_what_says_nothing_is_not_remembered(norm: float) -> None:
    training = Norms()
    training.clip_all(usual(50))
    before = {name: value.clone() for name, value in training.clipper.memory.items()}
    training.clip_all([norm] * 5)
    pairs = [(value, before[name]) for name, value in training.clipper.memory.items()]
    assert all(torch.equal(now.nan_to_num(-1), was.nan_to_num(-1)) for now, was in pairs)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_a_run_may_begin_with_what_says_nothing(norm: float) -> None:
    training = Norms()
    training.clip(norm)
    assert training.clip_all([1.0, 100.0]) == Norms().clip_all([1.0, 100.0])


def test_an_unclipped_gradient_keeps_every_bit() -> None:
    norms = usual(400, scatter=0.15)
    assert Norms().clip_all(norms)[200:] == [float(np.float32(norm)) for norm in norms[200:]]


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("width", 0, "a number, positive and finite"),
        ("width", math.inf, "a number, positive and finite"),
        ("least_ratio", 1.0, "a number, above 1 and finite"),
        ("least_ratio", "two", "a number, above 1 and finite"),
        ("window", 1, "an integer of 2 or more"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_cure(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        Band(**{argument: value})
