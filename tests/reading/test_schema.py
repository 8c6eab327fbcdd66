"""Encodings and their inverses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightning_gradwatch.core.quantities.gradient_norm import GRAD_NORM
from lightning_gradwatch.core.quantities.quantity import Quantity
from lightning_gradwatch.core.records import NUM_BINS, Alert
from lightning_gradwatch.reading.left_out import LeftOut
from lightning_gradwatch.reading.schema import (
    BINS_VERSION,
    Description,
    UnreadableError,
    decode_alerts,
    decode_histogram,
    encode_alerts,
    encode_frame,
    encode_histogram,
    encode_sequence,
)
from tests.tensorboard.board import read_frame

ALERT = Alert("vanishing", "alert", 9, None, "net.0", 4.0, 2.0, "Gradients vanish.", remedies=("ReLU", "a skip"))


def unpacked(packed: Any) -> Any:
    """The shares in all bins."""
    first, shares = decode_histogram(packed)
    bins = np.zeros((len(packed), NUM_BINS))
    for row, (start, bytes_) in enumerate(zip(first, shares, strict=True)):
        bins[row, start : start + 64] = (bytes_ / 255.0) ** 2
    return bins


@given(
    counts=arrays.arrays(np.float32, (3, 64), elements=st.floats(0, 1e6, width=32)),
    start=st.integers(0, NUM_BINS - 64),
)
@settings(deadline=None, max_examples=60)
def test_histograms_of_sixteen_decades_come_back_to_a_byte(counts: Any, start: int) -> None:
    whole = np.zeros((3, NUM_BINS + 2), np.float32)
    whole[:, start : start + 64] = counts
    whole[:, NUM_BINS:] = 1e6  # zeros and non-finite values are no part of it
    total = counts.astype(float).sum(1, keepdims=True)
    expected = np.divide(whole[:, :NUM_BINS], total, where=total > 0, out=np.zeros((3, NUM_BINS)))
    packed = encode_histogram(whole)
    assert (str(packed.dtype), packed.shape) == ("uint8", (3, 66))
    assert np.abs(np.sqrt(unpacked(packed)) - np.sqrt(expected)).max() <= 0.51 / 255


def test_what_lies_beyond_the_window_is_counted_in_its_outermost_bins() -> None:
    counts = np.zeros((1, NUM_BINS + 2), np.float32)
    counts[0, [3, 100, 130, 300]] = [1, 10, 20, 2]
    first, shares = decode_histogram(encode_histogram(counts))
    assert first[0] <= 100
    assert first[0] + 63 >= 130
    weights = (shares[0] / 255.0) ** 2
    assert weights.sum() == pytest.approx(1, abs=0.01)
    assert weights[0] + weights[100 - first[0]] * (first[0] != 100) == pytest.approx(11 / 33, abs=0.01)
    assert weights[-1] + weights[130 - first[0]] * (first[0] != 67) == pytest.approx(22 / 33, abs=0.01)


def test_a_layer_whose_gradient_is_exactly_zero_has_an_empty_histogram() -> None:
    counts = np.zeros((2, NUM_BINS + 2), np.float32)
    counts[:, NUM_BINS] = 100
    assert not decode_histogram(encode_histogram(counts))[1].any()


def test_a_damaged_histogram_stays_within_the_bins() -> None:
    first, _ = decode_histogram(np.full((2, 66), 255, np.uint8))
    assert first.max() == NUM_BINS - 64


@pytest.mark.parametrize("steps", [8, 127, 128, 129, 512, 1000])
def test_a_sequence_is_thinned_evenly_and_keeps_both_ends(steps: int) -> None:
    norms = np.linspace(1, 2, steps, dtype=np.float32)
    norms[0] = math.nan
    pairs = encode_sequence(norms)
    back = pairs[:, 0].astype(int)
    assert (str(pairs.dtype), len(pairs)) == ("float32", min(steps, 128))
    assert (back[0], back[-1]) == (steps - 1, 0)
    gaps = -np.diff(back)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert np.array_equal(pairs[:, 1], norms[steps - 1 - back], equal_nan=True)


def test_alerts_come_back_as_they_were() -> None:
    alerts = [replace(ALERT, message="<script>alert(1)</script> | ü", until_step=12), ALERT]
    found = decode_alerts(encode_alerts(alerts, 2))
    assert found["num_dropped"] == 0
    told: list[dict[str, Any]] = [{**alert} for alert in found["alerts"]]
    assert [Alert(**{**alert, "remedies": tuple(alert["remedies"])}) for alert in told] == alerts


@pytest.mark.parametrize("end", ["", "end", "ValueError"])
def test_how_a_run_ended_comes_back(end: str) -> None:
    assert decode_alerts(encode_alerts([ALERT], 1, end))["end"] == end


@pytest.mark.parametrize("end", [{}, {"end": None}, {"end": 3}, {"end": ["end"]}])
def test_a_log_that_does_not_tell_how_a_run_ended_is_read(end: dict[str, object]) -> None:
    document = {"schema": 1, "alerts": [], "num_alerts": 0, "num_dropped": 0, **end}
    assert decode_alerts(json.dumps(document)) == {
        "alerts": [],
        "num_dropped": 0,
        "end": None,
        "left_out": [],
    }


_RULE: LeftOut = {"kind": "rule", "name": "hot", "step": 3, "message": "GradWatch left out your rule."}


def test_what_a_run_went_on_without_comes_back() -> None:
    assert decode_alerts(encode_alerts([], 0, "end", [_RULE]))["left_out"] == [_RULE]


@pytest.mark.parametrize("left_out", [None, 3, {}, [3], [{}], [{**_RULE, "step": "3"}], [{**_RULE, "message": None}]])
def test_what_is_no_list_of_what_was_left_out_is_dropped_alone(left_out: object) -> None:
    document = json.dumps({**json.loads(encode_alerts([ALERT], 1, "end")), "left_out": left_out})
    found = decode_alerts(document)
    assert (len(found["alerts"]), found["end"], found["left_out"]) == (1, "end", [])


def test_of_many_alerts_the_open_ones_and_the_newest_are_kept() -> None:
    ended = [replace(ALERT, step=step, until_step=step + 1) for step in range(1, 1000)]
    found = decode_alerts(encode_alerts([ALERT, *ended], 1000))
    assert [alert["step"] for alert in found["alerts"]] == [9, *range(900, 1000)]
    assert found["num_dropped"] == 899


def test_numbers_of_alerts_that_are_no_json_come_back() -> None:
    (found,) = decode_alerts(encode_alerts([replace(ALERT, value=math.inf)], 1))["alerts"]
    assert found["value"] == math.inf


DESCRIPTION = Description("grad_norm", "Adam-1", 2, ("net.0", "ünï/cöde"))


def test_descriptions_come_back_as_they_were() -> None:
    assert Description.decode(DESCRIPTION.encode()) == DESCRIPTION


SIZED = replace(DESCRIPTION, elements=(9_216, 10**12), vectors=(1,))


def test_sizes_come_back_as_they_were_and_a_log_of_before_has_none() -> None:
    assert Description.decode(SIZED.encode()) == SIZED
    assert (b"elements" in DESCRIPTION.encode(), Description.decode(DESCRIPTION.encode()).elements) == (False, ())


@pytest.mark.parametrize(
    "elements", [3, "12", [1], [1, 2, 3], [1, -2], [1, 2.5], [1, 2**53], [1, None], [True, 1], {"a": 1}]
)
def test_sizes_that_are_of_no_use_are_left_out(elements: Any) -> None:
    content = {**json.loads(SIZED.encode()), "elements": elements}
    assert Description.decode(json.dumps(content).encode()) == replace(SIZED, elements=())


GOOD = json.loads(DESCRIPTION.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        DESCRIPTION.encode()[:-5],
        *(json.dumps({k: v for k, v in GOOD.items() if k != left_out}).encode() for left_out in GOOD),
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in (
                {"schema": "1"},
                {"schema": 0},
                {"version": "x"},
                {"layers": 3},
                {"layers": [1]},
                {"quantity": "sequence"},
            )
        ),
        pytest.param(b"[" * 200_000, id="nested without end"),
    ],
)
def test_a_damaged_description_is_called_damaged(content: bytes) -> None:
    with pytest.raises(UnreadableError, match="is damaged"):
        Description.decode(content)


OWN = Quantity("turn", "Turn", "Angle to the gradient before", "linear", "first step", "degrees")


def test_a_declaration_comes_back_as_it_was() -> None:
    description = replace(DESCRIPTION, quantity="turn", declaration=OWN)
    assert Description.decode(description.encode()) == description
    assert description.shown_as == OWN
    assert DESCRIPTION.shown_as is GRAD_NORM


@pytest.mark.parametrize("declaration", [3, [], "linear", {"label": "Turn"}, {**OWN.words(), "scale": "cyclic"}])
def test_numbers_can_be_read_whatever_their_declaration_says(declaration: Any) -> None:
    found = Description.decode(json.dumps({**GOOD, "quantity": "turn", "declaration": declaration}).encode())
    assert found.shown_as is None
    assert found.fits(np.zeros(2, np.float32))


def test_what_a_newer_version_wrote_is_not_guessed() -> None:
    newer = {**GOOD, "schema": BINS_VERSION + 1}
    with pytest.raises(UnreadableError, match=r"newer GradWatch .schema 3; this one reads up to 2.: upgrade"):
        Description.decode(json.dumps(newer).encode())
    with pytest.raises(UnreadableError, match="newer GradWatch"):
        decode_alerts('{"schema": 2, "alerts": [], "num_alerts": 0, "num_dropped": 0}')


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "alerts": {}}',
        '{"schema": 1, "alerts": [1]}',
        '{"schema": 1, "alerts": [{}]}',
        encode_alerts([ALERT], 1).replace('"step": 9', '"step": "9"'),
        encode_alerts([ALERT], 1).replace('"until_step": null, ', ""),
        encode_alerts([ALERT], 1)[:-9],
    ],
)
def test_a_damaged_document_of_alerts_is_called_damaged(document: str) -> None:
    with pytest.raises(UnreadableError, match="is damaged"):
        decode_alerts(document)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 3), (2, 0)])
def test_the_body_of_a_frame_starts_where_a_browser_may_map_it(dtype: Any, shape: tuple[int, int]) -> None:
    values = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    for name in ("", "x", "xy", "xyz", "ü" * 9):
        header, found = read_frame(encode_frame(values, {"steps": [1], "name": name}))
        assert header == {
            "schema": 1, "dtype": np.dtype(dtype).name, "shape": list(shape), "steps": [1], "name": name,
        }  # fmt: skip
        assert np.array_equal(found, values)


@pytest.mark.parametrize(
    ("quantity", "shape", "dtype", "fits"),
    [
        ("grad_norm", (2,), np.float32, True),
        ("grad_norm", (3,), np.float32, False),
        ("grad_norm", (2,), np.float64, False),
        ("grad_norm", (), np.float32, False),
        ("of_the_future", (2,), np.float32, True),
        ("grad_norm_range", (2, 3), np.float32, True),
        ("grad_norm_range", (2,), np.float32, False),
        ("log10_histogram", (2, 66), np.uint8, True),
        ("log10_histogram", (2, 64), np.uint8, False),
        ("log10_histogram", (2, 66), np.float32, False),
        ("sequence", (9, 2), np.float32, True),
        ("sequence", (2,), np.float32, False),
        ("grad_norm", (2,), object, False),
    ],
)
def test_a_sample_must_fit_its_description(quantity: str, shape: tuple[int, ...], dtype: Any, fits: bool) -> None:
    assert Description(quantity, "", 0, ("a", "b")).fits(np.zeros(shape, dtype)) is fits
