"""Which layers share a row: along the tree of modules and along repetition, by what differs, and never what is sick."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.reading.folding import MOST_ALONE, MOST_ROWS, Row, fold, plain
from lightning_gradwatch.reading.spans import neighbours, places_of, spans

ROLES = ("norm1", "attn.q_proj", "attn.k_proj", "attn.out_proj", "norm2", "mlp.up", "mlp.down")


def transformer(blocks: int) -> list[str]:
    """Names of the layers of a transformer."""
    return ["embed", *(f"model.layers.{i}.{role}" for i in range(blocks) for role in ROLES), "norm", "head"]


def paths(rows: list[Row]) -> list[str]:
    return [row.path for row in rows]


def check_complete(rows: list[Row], num_layers: int) -> None:
    """Every layer is in one row, and whatever a row opens into holds the same layers."""
    assert sorted(layer for row in rows for layer in row.layers) == list(range(num_layers))
    for row in rows:
        check_parts(row)


def check_parts(row: Row) -> None:
    assert not row.parts or sorted(layer for part in row.parts for layer in part.layers) == sorted(row.layers)
    for part in row.parts:
        check_parts(part)


def test_few_layers_have_a_row_each() -> None:
    layers = transformer(6)
    assert len(layers) <= MOST_ROWS
    assert fold(layers, np.ones(len(layers))) == [Row(name, (i,)) for i, name in enumerate(layers)]


def test_repetitions_that_are_alike_share_rows_by_their_role() -> None:
    layers = transformer(32)
    values = [0.01 if "norm" in name else 1.0 for name in layers]
    found = fold(layers, np.array(values))
    assert paths(found) == ["embed", *(f"model.layers.0-31.{role}" for role in ROLES), "norm", "head"]
    assert found[2].layers == tuple(range(2, 2 + 32 * len(ROLES), len(ROLES)))


def test_where_depth_makes_the_difference_blocks_share_rows_by_depth() -> None:
    layers = transformer(100)
    found = fold(layers, 10.0 ** np.linspace(-12, 0, len(layers)))
    check_complete(found, len(layers))
    assert MOST_ROWS / 2 < len(found) <= MOST_ROWS
    assert all(row.layers == tuple(range(row.layers[0], row.layers[-1] + 1)) for row in found), "in running order"
    assert found[1].path.startswith("model.layers.0-")


def test_one_block_that_differs_is_told_apart() -> None:
    layers = transformer(32)
    values = np.array([1e-9 if ".17." in name else 1.0 for name in layers])
    assert any("17" in row.path and "-" not in row.path.split(".")[2] for row in fold(layers, values)[1:-2])


def test_what_is_sick_has_a_row_of_its_own() -> None:
    layers = transformer(1000)
    sick = ["model.layers.5.attn.q_proj", "model.layers.999.mlp.down", "not.a.layer"]
    found = fold(layers, np.ones(len(layers)), sick)
    check_complete(found, len(layers))
    assert {*sick[:2]} <= {*paths(found)}
    assert len(found) <= MOST_ROWS + 2 * len(ROLES)


def test_of_very_many_sick_layers_the_first_have_rows() -> None:
    layers = transformer(1000)
    found = fold(layers, np.full(len(layers), np.nan), layers[1:-2])
    check_complete(found, len(layers))
    assert {*layers[1 : 1 + MOST_ALONE]} <= {*paths(found)}
    assert len(found) < 2 * MOST_ROWS


def test_rows_open_into_their_parts_down_to_single_layers() -> None:
    layers = transformer(1000)
    found = fold(layers, np.ones(len(layers)))
    check_complete(found, len(layers))
    queries = next(row for row in found if row.path == "model.layers.0-999.attn.q_proj")
    assert [part.path for part in queries.parts[:2]] == [f"model.layers.{a}.attn.q_proj" for a in ("0-61", "62-124")]
    assert not queries.parts[0].parts, "what it opens into are its layers"


@pytest.mark.parametrize(
    "layers",
    [
        [f"net.{2 * i}" for i in range(400)],
        [f"stage{i}.conv" for i in range(100)],
        [f"unlike_{chr(97 + i % 26)}{i // 26}x" for i in range(400)],
        [f"block.{i}.{'even' if i % 2 else 'odd'}.weight" for i in range(120)],
        ["same"] * 100,
        [""] * 100,
        [".".join("a" * 40) + str(i) for i in range(100)],
        ["a" + ".b" * 5000] * 60,
        ["(model)", *(f"m.experts.{i}.{j}.w" for i in range(20) for j in range(20))],
    ],
    ids=["plain", "numbered", "unlike", "alternating", "same", "empty", "deep", "endless", "experts"],
)
def test_any_names_can_be_folded(layers: list[str]) -> None:
    found = fold(layers, 10.0 ** np.linspace(-9, 0, len(layers)))
    check_complete(found, len(layers))
    assert len(json.dumps(plain(found))) < 100 * len(layers) + 40 * max(map(len, layers))
    if len({*layers}) == len(layers):
        assert len(found) <= MOST_ROWS


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0", "1", "2"]), max_size=4).map(".".join), max_size=90))
def test_no_layer_is_lost(layers: list[str]) -> None:
    check_complete(fold(layers, np.ones(len(layers)), layers[3:5], most=10), len(layers))


def test_rows_stand_in_a_few_characters() -> None:
    assert spans([3, 5, 6, 7, 20, 30, 40]) == "3+5-7+20-40:10"
    places, starts = places_of("0,3+5-7,20-40:10,50..52", 60)
    assert [part.tolist() for part in np.split(places, starts[1:])] == [
        [0],
        [3, 5, 6, 7],
        [20, 30, 40],
        [50],
        [51],
        [52],
    ]


@given(st.sets(st.integers(0, 99), min_size=1).map(sorted))
def test_spans_are_read_as_they_were_written(layers: list[int]) -> None:
    assert places_of(spans(layers), 100)[0].tolist() == layers


@pytest.mark.parametrize(
    "text", ["", "a", "1,,2", "5-3", "0-60", "1-9:0", "0..59,0", "-1", "1.5", "9" * 30, "1+", "0-59,0-59"]
)
def test_what_is_no_row_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"row|layer"):
        places_of(text, 60)


def test_neighbours_share_rows_evenly() -> None:
    assert neighbours(10, 3)[1].tolist() == [0, 3, 6]
    assert neighbours(3, 10)[1].tolist() == [0, 1, 2]
