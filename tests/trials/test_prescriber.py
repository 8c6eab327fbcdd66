"""GradWatch(prescribe=True) in real trainings: what it says, where it says it, and that the training never knows."""

from __future__ import annotations

import json
import logging
import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gradwatch import Alert, GradWatch, GradWatchWarning, Prescription
from lightning_gradwatch.core.metrics import ALERT_DOCUMENT, ALERT_TABLE, PRESCRIPTION_TABLE
from lightning_gradwatch.outputs import alerts_file
from lightning_gradwatch.reading.schema import decode_alerts
from lightning_gradwatch.reading.trials import not_tried, recipes, rows_of, shown, summary
from lightning_gradwatch.trials.prescriber import MAX_SECONDS_TOGETHER, Prescriber, with_figures
from lightning_gradwatch.trials.records import Trial
from tests.builders import as_logged
from tests.prescriptions import prescription
from tests.setups.processes import run_ranks, tell
from tests.tasks import Classifier, deep_net, digits, fit, quiet_trainer, read_events, session_of, small_net

pytestmark = pytest.mark.slow

STEPS = 30
RANKS = "import sys; from tests.trials import test_prescriber; test_prescriber.train_on_a_rank(sys.argv[1])"


class Sick(Classifier):  # type: ignore[misc, valid-type]
    """Sigmoids through which nothing passes, between layers that have buffers and draw random numbers."""

    def __init__(self, depth: int = 8, **options: Any) -> None:
        norm, drop = nn.BatchNorm1d(64), nn.Dropout(0.2)
        super().__init__(nn.Sequential(norm, drop, *deep_net(nn.Sigmoid, depth)), **{"lr": 0.05, **options})
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss


def prescribed(watch: GradWatch) -> list[Alert]:
    return [alert for alert in watch.alerts if alert.prescription is not None]


def state_of(trainer: pl.Trainer, model: Any) -> dict[str, Any]:
    """Everything in which a disturbed run would differ."""
    optimizer = trainer.optimizers[0].state_dict()["state"]
    return {
        **{f"model.{name}": value for name, value in model.state_dict().items()},
        **{f"optimizer.{i}.{name}": v for i, state in optimizer.items() for name, v in state.items() if v is not None},
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(np.random.get_state(legacy=False)["state"]["key"].astype(np.int64)),  # type: ignore[call-overload, index]
        "python": torch.tensor([float(hash(random.getstate()))]),
        "losses": torch.stack(model.losses),
        "logged": trainer.callback_metrics["loss"],
    }


def train(watch: GradWatch | None, model: Any = None, **options: Any) -> tuple[pl.Trainer, Any]:
    model = Sick(momentum=0.9) if model is None else model
    return fit(watch, model, **{"max_steps": STEPS, "log_every_n_steps": 5, **options}), model


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name]))]


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}], ids=str
)
def test_the_training_is_bit_identical_with_and_without(tmp_path: Path, options: dict[str, Any]) -> None:
    watch = GradWatch(prescribe=True)
    treated = state_of(*train(watch, directory=tmp_path / "with", **options))
    bare = state_of(*train(None, directory=tmp_path / "without", **options))
    (alert,) = prescribed(watch)
    assert alert.step < STEPS - 5  # so that there are steps which it could have spoilt
    assert differences(treated, bare) == []


def test_the_check_sees_a_disturbance() -> None:
    class Disturber(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            torch.rand(1)

    disturbed = state_of(*train(None, callbacks=[Disturber()]))
    assert "torch" in differences(disturbed, state_of(*train(None)))


class Fragile(Sick):
    """Its copies fail in the middle of a trial."""

    original: Any = None
    num_steps_of_copies = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self is not Fragile.original:
            Fragile.num_steps_of_copies += 1
            if Fragile.num_steps_of_copies > 12:
                random.random(), np.random.rand()
                raise RuntimeError("no more of this")
        return loss


def test_a_failure_in_the_middle_costs_one_warning_and_nothing_else() -> None:
    Fragile.original, Fragile.num_steps_of_copies = Fragile(momentum=0.9), 0
    watch = GradWatch(prescribe=True)
    with pytest.warns(GradWatchWarning) as caught:
        failed = state_of(*train(watch, Fragile.original))
    bare = state_of(*train(None))
    assert Fragile.num_steps_of_copies > 12
    assert sum("could not try remedies" in str(warning.message) for warning in caught) == 1
    assert prescribed(watch) == []
    assert watch.alerts[0].remedies
    assert differences(failed, bare) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Alert]:
    directory, watch = tmp_path_factory.mktemp("run"), GradWatch(prescribe=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(watch, directory=directory, max_steps=60)
    (alert,) = prescribed(watch)
    return directory, alert


def test_the_alert_names_what_helped_with_its_figures(run: tuple[Path, Alert]) -> None:
    alert = run[1]
    assert alert.prescription is not None
    helpful = [trial for trial in alert.prescription["trials"] if trial["effect"] == "helps"]
    assert helpful
    assert len(alert.remedies) == min(len(helpful), 3)
    untreated = alert.prescription["untreated"]
    for remedy, trial in zip(alert.remedies, helpful, strict=False):
        assert remedy.startswith(f"{trial['remedy']} (tried for 20 steps: loss {trial['loss_after']:.3g} instead of ")
        assert f"instead of {untreated['decades']:.1f}" in remedy
    assert alert.message.endswith(f" Try: {'; '.join(alert.remedies)}.")
    assert untreated["decades"] > 2
    assert helpful[0]["loss_after"] < untreated["loss_after"]


def test_the_file_tells_it_once_and_after_the_alert(run: tuple[Path, Alert]) -> None:
    directory, alert = run
    lines = [line for line in alerts_file.read(directory) if line["kind"] == alert.kind]
    assert [line["event"] for line in lines][:2] == ["opened", "prescribed"]
    assert sum(line["event"] == "prescribed" for line in lines) == 1
    assert lines[0]["prescription"] is None
    assert lines[1]["remedies"] == list(alert.remedies)
    assert lines[1]["prescription"] is not None
    assert lines[1]["prescription"]["untreated"]["loss_after"] == pytest.approx(
        alert.prescription["untreated"]["loss_after"]  # type: ignore[index]
    )


def test_the_event_file_holds_it_for_the_tab_and_as_text(run: tuple[Path, Alert]) -> None:
    directory, alert = run
    events = read_events(directory)
    document = decode_alerts(events.Tensors(ALERT_DOCUMENT)[-1].tensor_proto.string_val[0])
    (told,) = [shown(found) for found in document["alerts"] if found.get("prescription")]
    assert told["tried"]["rows"][0][0] == "as it is"
    assert len(told["tried"]["rows"]) == 1 + len(alert.prescription["trials"])  # type: ignore[index]
    (table,) = events.Tensors(PRESCRIPTION_TABLE)
    text = table.tensor_proto.string_val[0].decode()
    assert "| remedy | effect | orders of magnitude lost | loss |" in text
    assert "as it is" in text
    assert len(events.Tensors(ALERT_TABLE)) >= 2


def test_a_json_line_is_json_for_every_reader(run: tuple[Path, Alert]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for text in (run[0] / alerts_file.NAME).read_text().splitlines():
        json.loads(text, parse_constant=refuse)


def test_the_console_shows_the_table_after_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    watch = GradWatch(prescribe=30)
    with caplog.at_level(logging.INFO), pytest.warns(GradWatchWarning, match="vanishing"):
        train(watch, max_steps=15)
    told = [record.message for record in caplog.records if record.message.startswith("GradWatch ")]
    assert told[0] == "GradWatch tries remedies on a copy of the model; training waits, 30 s at most."
    assert told[1].startswith("GradWatch has tried remedies:\n")
    assert "untreated" in told[1]


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_without_the_option_nothing_is_tried_and_no_batch_is_kept() -> None:
    batches: list[Any] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            batches.append(session_of(watch).responses.prescriber)

    watch = GradWatch()
    train(watch, callbacks=[Look()])
    assert watch.alerts
    assert prescribed(watch) == []
    assert batches == [None] * STEPS


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_batch_is_kept_only_until_the_first_alert() -> None:
    kept: list[bool] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            prescriber = session_of(watch).responses.prescriber
            assert prescriber is not None
            kept.append(prescriber.batch is not None)

        def on_train_batch_end(self, *_: Any) -> None:
            prescriber = session_of(watch).responses.prescriber
            assert prescriber is not None
            assert prescriber.batch is None

    watch = GradWatch(prescribe=True)
    train(watch, callbacks=[Look()])
    first = prescribed(watch)[0].step
    assert all(kept[: first + 1])
    assert not any(kept[first + 1 :])


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_healthy_run_is_left_alone() -> None:
    watch = GradWatch(prescribe=True)
    fit(watch, Classifier(small_net()), max_steps=STEPS)
    assert watch.alerts == []
    assert session_of(watch).responses.prescriber is None  # nothing stays in memory


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
def test_a_gradient_that_is_not_finite_is_looked_into_before_it_spoils_the_weights() -> None:
    watch = GradWatch(prescribe=True)
    fit(watch, Classifier(small_net(), lr=1e30), max_steps=6)
    (alert,) = prescribed(watch)
    assert alert.kind == "nonfinite"
    assert alert.prescription is not None
    rates = [trial for trial in alert.prescription["trials"] if trial["key"].startswith("lr.")]
    assert rates


@pytest.mark.filterwarnings("ignore::lightning_gradwatch.GradWatchWarning")
@pytest.mark.filterwarnings("ignore:.*add the following callbacks.*")
def test_a_resumed_run_does_not_try_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def checkpoints(every: int) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=every, save_top_k=-1)

    first = GradWatch(prescribe=True)
    train(first, directory=tmp_path, callbacks=[checkpoints(5)], enable_checkpointing=True)
    (alert,) = prescribed(first)
    caplog.clear()
    for saved in ("step=25", "step=5"):  # after the alert, and before it
        again = GradWatch(prescribe=True)
        trainer = quiet_trainer(again, directory=tmp_path, max_steps=STEPS)
        with caplog.at_level(logging.INFO):
            trainer.fit(Sick(momentum=0.9), digits(), ckpt_path=tmp_path / "saved" / f"{saved}.ckpt", weights_only=True)
        (known,) = prescribed(again)
        assert known.remedies == alert.remedies
        assert known.prescription is not None
        assert known.prescription["trials"]
    assert not any("tries remedies" in record.message for record in caplog.records)
    assert [line["event"] for line in alerts_file.read(tmp_path)].count("prescribed") == 1


@pytest.mark.parametrize("prescribe", [0, -1, math.nan, math.inf, "yes", None, [1]])
def test_a_wrong_argument_is_refused(prescribe: Any) -> None:
    with pytest.raises(ValueError, match="`prescribe` must be True, False or a number of seconds"):
        GradWatch(prescribe=prescribe)


@pytest.mark.parametrize(("text", "seconds"), [("true", 60.0), ("false", 0.0), ("10", 10.0), ("2.5", 2.5)])
def test_it_can_be_set_in_a_configuration_file(text: str, seconds: float) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GradWatch, "watch")
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    assert instantiate(parser.parse_args([f"--watch.prescribe={text}"])).watch.config.prescribe_seconds == seconds


UNTREATED = Trial("", "untreated", "no change", 11.1, 2.3, 2.3)
HELPS = Trial("activation.relu", "ReLU", "helps", 0.4, 2.4, 0.41, code="a = 1\nb = 2")
ALERT = Alert("vanishing", "alert", 9, None, "net.0", 11.1, 2.0, "It vanishes. Try: ReLU.", remedies=("ReLU",))


def test_what_did_not_help_changes_neither_message_nor_remedies() -> None:
    same = replace(HELPS, effect="no change")
    treated = with_figures(ALERT, Prescription("Sick.", UNTREATED, (same,), (), 20))
    assert (treated.message, treated.remedies) == (ALERT.message, ALERT.remedies)
    assert treated.prescription is not None
    assert len(treated.prescription["trials"]) == 1


def test_figures_that_are_not_known_are_left_out() -> None:
    unknown = replace(HELPS, decades=math.nan)
    assert with_figures(ALERT, Prescription("", UNTREATED, (unknown,), (), 20)).remedies == (
        "ReLU (tried for 20 steps: loss 0.41 instead of 2.3)",
    )
    assert with_figures(ALERT, Prescription("", UNTREATED, (HELPS,), (), 0)).remedies == (
        "ReLU (tried: 0.4 orders of magnitude lost instead of 11.1)",
    )


def test_only_the_first_alert_is_treated_and_only_once() -> None:
    prescriber = Prescriber(60.0)
    assert prescriber.due(is_before_step=False) is None
    prescriber.note([])
    prescriber.note([ALERT, replace(ALERT, step=10)])
    prescriber.note([replace(ALERT, step=11)])
    assert prescriber.due(is_before_step=True) is None
    assert prescriber.due(is_before_step=False) == ALERT
    assert prescriber.due(is_before_step=False) is None
    prescriber.note([ALERT])
    assert prescriber.due(is_before_step=False) is None


@pytest.mark.parametrize(
    "damaged",
    [{}, {"trials": 3, "not_tried": "x", "untreated": []}, {"trials": [3, None, {}], "not_tried": [{}], "untreated": {}},  # noqa: E501
     {"trials": [{"decades": "NaN", "loss_after": None, "parameters_percent": [], "code": 3}], "num_steps": "x"}],
)  # fmt: skip
def test_a_damaged_prescription_is_shown_as_far_as_it_can_be_read(damaged: dict[str, Any]) -> None:
    told = shown(as_logged(ALERT, prescription=damaged))
    assert "prescription" not in told
    assert all(isinstance(cell, str) for row in told["tried"]["rows"] for cell in row)
    assert all(len(row) == len(told["tried"]["header"]) for row in told["tried"]["rows"])


@pytest.mark.parametrize("nothing", [None, 3, "x", [1]])
def test_an_alert_without_a_prescription_is_shown_as_ever(nothing: object) -> None:
    assert "tried" not in shown(as_logged(ALERT, prescription=nothing))


def test_rows_of_text_show_every_figure_but_times_that_may_be_accidents() -> None:
    found = prescription()
    assert rows_of(found) == [
        ("as it is", "", "11.1", "2.3", "", ""),
        ("ReLU", "helps", "0.4", "0.41", "0 %", ""),
        ("SiLU", "worse", "", "diverged", "+3 %", ""),
    ]
    assert recipes(found) == [("ReLU", "a = 1\nb = 2")]
    assert not_tried(found) == ["skips (no two layers of the same shape)"]
    assert summary(found) == "2 remedies tried on a copy of the model, 1 of them helped"
    found["trials"] = [{**found["trials"][0], "time_percent": percent} for percent in (9.9, -9.9, 10.0, -12.2)]
    assert [row[-1] for row in rows_of(found)[1:]] == ["", "", "+10 %", "-12 %"]


class Barred(Sick):
    """Asks the other ranks in every step, as a synchronised BatchNorm does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.distributed.all_reduce(torch.ones(1))
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


def train_on_a_rank(directory: str) -> None:
    """Trains in one of two processes; tells what was found and how the weights ended."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    for name, prescribe, kind in (("treated", True, Sick), ("bare", False, Sick), ("barred", 1000.0, Barred)):
        pl.seed_everything(3, verbose=False)
        watch, model = GradWatch(prescribe=prescribe), kind()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options: dict[str, Any] = {"directory": Path(directory) / name, "strategy": "ddp", "devices": 2}
            quiet_trainer(watch, max_steps=STEPS, **options).fit(model, digits(16))
        weights = torch.cat([value.flatten().float() for value in model.state_dict().values()])
        losses = torch.stack(model.losses).tolist()
        failures = [str(w.message) for w in caught if "could not try remedies" in str(w.message)]
        told[name] = [weights.tolist(), losses, len(prescribed(watch)), failures]
    tell(told)


@pytest.mark.slow
def test_under_ddp_rank_zero_tries_alone_and_nobody_notices(tmp_path: Path) -> None:
    first, second = run_ranks(RANKS, tmp_path)
    for told in (first, second):
        assert told["treated"][:2] == told["bare"][:2]
    assert first["treated"][0][:100] != [0.0] * 100
    assert [told["treated"][2] for told in (first, second)] == [1, 0]
    assert first["barred"][2] == 0
    (failure,) = first["barred"][3]
    assert "needs the other ranks" in failure
    assert [line["event"] for line in alerts_file.read(tmp_path / "treated")].count("prescribed") == 1


def test_where_others_wait_it_takes_less_than_a_collective_may() -> None:
    assert MAX_SECONDS_TOGETHER < 600
