"""Labels of the zoo hold by any kernels; the check of that computes in another way indeed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.zoo import CASES
from benchmarks.zoo.check_labels import SEEDS, check_everywhere, chosen
from benchmarks.zoo.kernels import Arithmetic, all_here

ASK = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.__config__.show())"


def test_every_kind_of_kernels_comes_with_one_thread_and_with_two() -> None:
    found = {(way.kernels, way.threads) for way in all_here()}
    assert {("default", 1), ("default", 2), ("compatible", 1), ("compatible", 2)} <= found
    assert len(found) == 2 * len({kernels for kernels, _ in found})
    assert len(SEEDS) >= 5


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_computes_in_the_way_that_it_is_told(threads: int) -> None:
    environment = {**os.environ, **Arithmetic("compatible", threads).environment}
    told = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"DEFAULT {threads} ")
    assert environment["MKL_CBWR"] == "COMPATIBLE"


def test_cases_are_chosen_by_name_and_by_file() -> None:
    assert {case.name for case in chosen([])} == set(CASES)
    assert [case.name for case in chosen(["relu_he_mlp6"])] == ["relu_he_mlp6"]
    assert len(chosen(["late", "relu_he_mlp6"])) == len(chosen(["late"])) + 1
    with pytest.raises(ValueError, match=r"no such case or file: gan2; the files are .*mlp"):
        chosen(["late", "gan2"])


@pytest.mark.slow
def test_a_label_that_does_not_hold_is_shown_with_its_way_and_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ways = [Arithmetic("compatible", 1), Arithmetic("default", 2)]
    assert check_everywhere(["relu_he_mlp20"], [3], ways) == 0
    assert capsys.readouterr().out == (
        "compatible, 1 thread, seed 3: every label holds\ndefault, 2 threads, seed 3: every label holds\n"
        "0 runs with an objection\n"
    )
    # a child in which no network learns
    (tmp_path / "sitecustomize.py").write_text(
        "import torch\ntorch.optim.SGD.step = lambda self, closure: closure()\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check_everywhere(["relu_he_mlp20"], [3], ways[:1]) == 1
    shown = capsys.readouterr().out
    assert "compatible, 1 thread, seed 3: \n    relu_he_mlp20" in shown
    assert "DOES NOT LEARN" in shown
