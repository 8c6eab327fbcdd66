"""Models of several kinds under DeepSpeed in two real processes, against one process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.setups.deepspeed.models_training import AT, measure_model
from tests.setups.deepspeed.ranks import Told, told_by
from tests.setups.deepspeed.test_deepspeed import OUTPUTS, assert_same
from tests.setups.published import numbers

pytestmark = pytest.mark.slow
HERE = "models_training"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told_by("measure_models", tmp_path_factory.mktemp("models"), HERE)


ROUNDED = ("grad_log10/", "gradwatch/layers/log10_histogram", "gradwatch/layers/zero_fraction")
"""What tells zeros from numbers that are zero but for rounding, as the gradients of the biases of keys are."""
THINNED_OUT = ("gradwatch/update_ratio", "gradwatch/layers/update_ratio")
"""What looks at 256 elements of each piece, which are others where a matrix is cut."""
IGNORED = {"gpt2": (*ROUNDED, *THINNED_OUT, OUTPUTS)}
POSITIONS = "net.transformer.wpe"
"""An embedding whose output, and so the gradient there, is one for the whole batch of a rank."""


@pytest.mark.parametrize("name", AT)
def test_the_numbers_are_those_of_one_process(measured: Told, tmp_path: Path, name: str) -> None:
    truth = measure_model(0, name, tmp_path)
    directory, ranks = measured
    for stage in AT[name]:
        assert_same(directory / f"{name} {stage}", numbers(tmp_path), IGNORED.get(name, ()))
        here = ranks[0][f"{name} {stage}"]
        assert here == ranks[1][f"{name} {stage}"]
        assert not here["is_off"]
        assert here["alerts"] == json.loads(json.dumps(truth["alerts"]))
        if name == "gpt2":
            expected = {layer: norm * 2**0.5 for layer, norm in truth["profile"].items() if layer != POSITIONS}
            assert len(expected) == 10
            assert {layer: here["profile"][layer] for layer in expected} == pytest.approx(expected, rel=1e-5)


def test_a_pipeline_is_refused_with_the_cure(tmp_path: Path) -> None:
    for rank in told_by("refuse_pipeline", tmp_path, HERE)[1]:
        words = (
            "`model` must be one of which every rank runs all layers, but 'PipelineModule in 2 stages' came. To cure"
        )
        assert re.search(words, rank["two stages"])
