"""``gradwatch replay``: the place at which NaN was born, found afterwards from a flight record and a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.births.cases import BATCH, SIZE
from lightning_gradwatch import GradWatch
from lightning_gradwatch.births.replaying import is_bad
from lightning_gradwatch.cli.main import main
from lightning_gradwatch.outputs import flight
from tests.births.test_in_training import Rooted
from tests.tasks import Classifier, quiet_trainer

HOME = "tests.births.test_replaying"
STEPS, EVERY, SAMPLE = 24, 5, 77


def loader() -> DataLoader[Any]:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(12 * BATCH, SIZE, generator=random) + 3
    inputs[SAMPLE % len(inputs)] = 0.0
    return DataLoader(TensorDataset(inputs, torch.arange(len(inputs)) % 3), batch_size=BATCH, shuffle=True)


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Identity(), Rooted(), nn.Linear(SIZE, 3)), lr=0.01)


def entry() -> tuple[Any, ...]:
    return model(), loader()


class Frozen(Classifier):  # type: ignore[misc, valid-type]
    """An optimizer without the small number that keeps it from 0 / 0, and a weight whose gradient becomes 0."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(SIZE, 3)), lr=0.01)
        self.unused = nn.Parameter(torch.ones(4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss + 0.0 * self.unused.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3, eps=0.0)


def frozen() -> tuple[Any, ...]:
    return Frozen(), loader()


def plain() -> tuple[Any, ...]:
    net = model()
    return net.net, loader(), nn.CrossEntropyLoss()


def nothing() -> int:
    return 3


def trained(
    directory: Path, make: Callable[[], tuple[Any, ...]], every: int = EVERY, **options: Any
) -> tuple[Path, list[Path]]:
    pl.seed_everything(1, verbose=False)
    module, data = make()
    logger = pl.loggers.TensorBoardLogger(directory, name="", version="")
    keep = ModelCheckpoint(directory / "kept", "{step}", every_n_train_steps=every, save_top_k=-1)
    options = {"enable_checkpointing": True, "max_steps": STEPS, **options}
    quiet_trainer(GradWatch(), keep, logger=logger, **options).fit(module, data)
    kept = sorted((directory / "kept").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return flight.files(directory)[-1], kept  # type: ignore[return-value]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return trained(tmp_path_factory.mktemp("run"), entry)


def first_bad(record: Path) -> dict[str, Any]:
    return next(line for line in flight.read(record)[1] if is_bad(line))


def replayed(record: Path, checkpoint: Path, name: str, *more: str) -> int:
    return main(["replay", str(record), "--checkpoint", str(checkpoint), "--entry", f"{HOME}:{name}", *more])


def test_the_place_is_found_from_any_checkpoint_before(run: tuple[Path, list[Path]], capsys: Any) -> None:
    record, kept = run
    bad = first_bad(record)
    assert bad["step"] > EVERY, "steps are taken again"
    texts = []
    for checkpoint in (path for path in kept if int(path.stem.partition("=")[2]) <= bad["step"]):
        assert replayed(record, checkpoint, "entry") == 1
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    place = f"step {bad['step']} (epoch {bad['epoch']}, batch {bad['batch_idx']})"
    assert texts[0].startswith(f"{place}: born in `net.1`, ")
    assert "test_in_training.py line " in texts[0]
    assert "return torch.log(" in texts[0]
    assert "Try: a logarithm that never sees 0" in texts[0]


def test_programs_get_json(run: tuple[Path, list[Path]], capsys: Any) -> None:
    record, kept = run
    assert replayed(record, kept[0], "entry", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["birth"]["stage"], told["birth"]["module"]) == (
        first_bad(record)["step"],
        "forward",
        "net.1",
    )


def test_all_batches_of_an_accumulated_step_are_looked_at(tmp_path: Path, capsys: Any) -> None:
    record, kept = trained(tmp_path, entry, every=1, accumulate_grad_batches=3, max_steps=4)
    bad = first_bad(record)
    assert replayed(record, kept[bad["step"] - 1], "entry", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["birth"]["module"]) == (bad["step"], "net.1")


def test_weights_that_the_optimizer_has_spoilt_are_traced_to_it(tmp_path: Path, capsys: Any) -> None:
    record, _ = trained(tmp_path, frozen, max_steps=3)
    module, _ = frozen()
    torch.save(module.state_dict(), tmp_path / "start.pt")
    assert replayed(record, tmp_path / "start.pt", "frozen", "--step", "0") == 1
    said = capsys.readouterr().out
    assert "in the optimizer's step" in said
    assert "Try: a larger eps" in said


def test_a_healthy_step_is_said_to_be_finite(run: tuple[Path, list[Path]], capsys: Any) -> None:
    record, kept = run
    step = min(first_bad(record)["step"] - 1, EVERY + 1)
    assert replayed(record, kept[0], "entry", "--step", str(step)) == 0
    assert "is finite when it is replayed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("missing", (), "`--entry` must be the name of a function"),
        ("nothing", (), "`--entry` must be model and loader"),
        ("entry", ("--step", "9999"), "`--step` must be a step of the record"),
        ("frozen", (), "`--checkpoint` must be the weights of the entry's model"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: tuple[Path, list[Path]], capsys: Any, name: str, more: tuple[str, ...], said: str
) -> None:
    record, kept = run
    assert replayed(record, kept[0], name, *more) == 2
    assert said in capsys.readouterr().err


def test_damaged_files_are_refused(run: tuple[Path, list[Path]], tmp_path: Path, capsys: Any) -> None:
    record, kept = run
    (tmp_path / "flight-1.jsonl.gz").write_bytes(record.read_bytes()[:40])
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    assert replayed(tmp_path / "flight-1.jsonl.gz", kept[0], "entry") == 2
    assert "FLIGHT must be a flight record" in capsys.readouterr().err
    assert replayed(tmp_path / "nowhere.gz", kept[0], "entry") == 2
    assert replayed(record, tmp_path / "bad.ckpt", "entry") == 2
    assert "`--checkpoint` must be a file that torch.load can read" in capsys.readouterr().err
