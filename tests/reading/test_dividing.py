"""Ways to show gradient norms: what each divides by, what survives it, and what a log of before allows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.reading import answers, heatmaps
from lightning_gradwatch.reading.dividing import divided, divisors
from lightning_gradwatch.reading.norms import NORMS, RELATIVE, RMS, TOTAL, chosen, norms_for
from lightning_gradwatch.reading.samples import Samples
from lightning_gradwatch.reading.schema import Description
from lightning_gradwatch.reading.spans import places_of
from tests.reading.test_store import Provider, frame, open_store
from tests.tensorboard.board import read_frame
from tests.tensorboard.record import record

LAYERS = ("embed", "block.norm", "block.linear", "head")
SIZED = Description("grad_norm", layers=LAYERS, elements=(100, 4, 400, 0), vectors=(1,))
FLOATS = st.floats(width=32, min_value=0) | st.sampled_from([-1.0, 0.0, math.inf, math.nan, 1e-45, 3.4e38])


def samples(*rows: list[float]) -> Samples:
    return Samples(np.arange(len(rows)), np.array(rows, np.float32))


def test_the_default_is_per_element_where_the_log_says_how_many_there_are() -> None:
    assert norms_for(SIZED) == ["rms", "total", "relative"]
    assert norms_for(Description("grad_norm", layers=LAYERS)) == ["total", "relative"]
    assert norms_for(Description("weight_norm", layers=LAYERS, elements=SIZED.elements)) == []
    assert [chosen(SIZED, name) for name in (None, "total", "mode")] == [RMS, TOTAL, RMS]
    assert chosen(Description("grad_norm", layers=LAYERS), "rms") is TOTAL
    assert [norm.of(GRAD_NORM).label for norm in NORMS.values()] == [
        "Gradient norm per element (RMS)", "Gradient norm", "Gradient norm relative to the layer's median",
    ]  # fmt: skip


def test_the_norm_per_element_is_the_root_mean_square() -> None:
    gradients = [np.random.default_rng(i).normal(size=size) for i, size in enumerate((100, 4, 400))]
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients] + [-1.0], np.float32)
    by = divisors(RMS, SIZED, samples(norms.tolist()))
    assert by is not None
    rms = [math.sqrt((gradient**2).mean()) for gradient in gradients]
    assert divided(norms, by) == pytest.approx([*rms, -1.0], rel=1e-5)


def test_the_median_is_that_of_positive_finite_norms() -> None:
    by = divisors(RELATIVE, SIZED, samples([1, 0, math.nan, 5], [3, 0, 2, math.inf], [2, -1, 4, -1]))
    assert by is not None
    assert by.tolist() == pytest.approx([2, math.nan, 2, 5], nan_ok=True)
    shown = divided(np.array([4, 7, 1, math.inf], np.float32), by)
    assert shown.tolist() == [2, -1, 0.5, math.inf], "what cannot be divided is no NaN of the run"
    assert divisors(TOTAL, SIZED, samples([1, 1, 1, 1])) is None


@given(st.lists(st.tuples(FLOATS, st.floats(1, 1e7, width=32)), min_size=1))
def test_zero_nan_infinity_and_none_keep_their_meaning(pairs: list[tuple[float, float]]) -> None:
    values, by = np.array(pairs, np.float32).T
    shown = divided(values[None], by)[0]
    is_number = (values > 0) & (values < np.inf)
    assert np.array_equal(shown[~is_number], values[~is_number], equal_nan=True)
    assert ((shown[is_number] > 0) & (shown[is_number] <= values[is_number])).all(), "never zero, however small"


def test_layers_that_share_a_row_are_divided_before_they_are_merged(tmp_path: Path) -> None:
    norms = np.array([[50, 4, 20, -1], [10, 8, 60, -1]], np.float32)
    with record(tmp_path / "run", LAYERS, elements=SIZED.elements) as run:
        run.write(0, norms)
    found = open_store(Provider(tmp_path))
    header, values = frame(found, "run", norm=RMS, rows=places_of("0-2,3", 4))
    assert values == pytest.approx(np.array([[5, -1], [4, -1]]), rel=2e-3)
    assert (header["norm"], header["extent"]) == ("rms", pytest.approx([1, 5], rel=2e-3))
    _, values = frame(found, "run", norm=RMS)
    assert values == pytest.approx(np.array([[5, 2, 1, -1], [1, 4, 3, -1]]), rel=2e-3)
    series = found.catalogue("run").of("", 0)["grad_norm"]
    told = heatmaps.column(found, series, 1, places_of("0-2,3", 4), RMS)
    assert told["values"] == pytest.approx([4, -1], rel=2e-3)
    assert told["lows"] == pytest.approx([1, -1], rel=2e-3)
    header, values = read_frame(heatmaps.heatmap(found, series, (None, None), 9, "mean", None, RMS))
    assert values[1] == pytest.approx([1, 4, 3, -1], rel=2e-3)
    whole = frame(found, "run")
    assert (whole[0]["norm"], whole[1].tolist()) == ("total", pytest.approx(norms, rel=2e-3))


BLOCKS = tuple(f"block.{i}.{part}" for i in range(40) for part in ("norm", "linear"))
DEAD = Alert(
    kind="dead", level="alert", step=0, until_step=None, layer="block.7.norm", value=1, threshold=1, message="Dead."
)


def test_norm_layers_can_be_hidden_but_for_those_that_are_sick(tmp_path: Path) -> None:
    vectors = range(0, len(BLOCKS), 2)
    norms = np.ones((3, len(BLOCKS)), np.float32)
    norms[1, BLOCKS.index("block.9.norm")] = math.nan
    with record(tmp_path / "run", BLOCKS, DEAD, elements=[4, 400] * 40, vectors=vectors) as run:
        run.write(0, norms)
    found = open_store(Provider(tmp_path))
    hiding = answers.run(found, "run", answers.Layout(hides_vectors=True))["optimizers"][0]["versions"][0]
    seen = [row for row in hiding["rows"] if isinstance(row, int)]
    wanted = {place for place, name in enumerate(BLOCKS) if "linear" in name}
    assert set(seen) == wanted | {BLOCKS.index("block.7.norm"), BLOCKS.index("block.9.norm")}
    assert (hiding["num_vectors"], hiding["norms"]) == (40, {"grad_norm": ["rms", "total", "relative"]})


def test_rows_are_shared_by_what_is_shown(tmp_path: Path) -> None:
    """Layers whose elements are alike share a row, though their norms differ."""
    elements = [100 * 4 ** (i * i % 11) for i in range(60)]
    norms = np.sqrt(np.array(elements, float))[None].repeat(2, 0)
    names = tuple(f"layers.{i}" for i in range(60))
    with record(tmp_path / "run", names, elements=elements) as run:
        run.write(0, norms)
    found = open_store(Provider(tmp_path))
    runs = {name: answers.run(found, "run", answers.Layout(name)) for name in NORMS}
    rows = {name: run["optimizers"][0]["versions"][0]["rows"] for name, run in runs.items()}
    assert len(rows["rms"]) < 5 < 20 < len(rows["total"])
