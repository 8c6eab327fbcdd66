"""Two real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from lightning_gradwatch import GradWatch
from tests.tasks import Classifier, deep_net, digits, quiet_trainer
from pathlib import Path
import lightning.pytorch as pl

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    pl.seed_everything(1, verbose=False)
    watch = GradWatch()
    trainer = quiet_trainer(watch, directory=directory, strategy="ddp", devices=2, max_steps=25,
                            log_every_n_steps=5, accumulate_grad_batches=2)
    trainer.fit(Classifier(deep_net()), digits())
    told = dict(alerts=[[a.kind, a.step, a.value] for a in watch.alerts])
    import json
    (directory / f"rank{trainer.global_rank}.json").write_text(json.dumps(told))
"""


def test_ranks_agree_and_rank_zero_publishes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parent.parent
    command = ["timeout", "-k", "5", "150", sys.executable, str(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(root))
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for ours, theirs in zip(ranks[0]["alerts"], ranks[1]["alerts"], strict=True):
        # gradients at layer outputs are those of the rank's own data, so their decades differ a little
        assert ours == [*theirs[:2], pytest.approx(theirs[2], rel=1e-2)]
    assert [a[:2] for a in ranks[0]["alerts"]] == [["vanishing", 9]]
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 1
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
