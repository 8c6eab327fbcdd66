"""Whether a run goes on, in a real Chromium on a real TensorBoard: live, ended, crashed, killed, old, and not there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import pytest
from playwright.sync_api import Browser, expect

from lightning_gradwatch import GradWatch
from lightning_gradwatch.reading import schema
from tests.tasks import Classifier, small_net
from tests.tensorboard.browser import Tab, alone, opened, tensorboard, write_run
from tests.tensorboard.logs import train

TABLE = {step: [0.1, 0.2] for step in range(1, 9)}
LAYERS = ("net.0", "net.2")
HOUR = 3600


class Stumble(pl.Callback):
    """Ends the training in its tenth step.

    Args:
        failure: How.
    """

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 10:
            raise self.failure


def write_old(directory: Path) -> None:
    """As before a run said how it ended."""
    whole = schema.encode_alerts

    def without(*given: object) -> str:
        document = json.loads(whole(*given))  # type: ignore[arg-type]
        del document["end"]
        return json.dumps(document)

    with mock.patch("lightning_gradwatch.outputs.tensorboard.encode_alerts", without):
        write_run(directory, LAYERS, TABLE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    train(logs / "whole", Classifier(small_net()), GradWatch(), max_steps=12)
    with pytest.raises(ValueError, match="no such batch"):
        train(logs / "broken", Classifier(small_net()), GradWatch(), Stumble(ValueError("no such batch")))
    now = time.time()
    with mock.patch("time.time", return_value=now - 3 * HOUR):
        write_run(logs / "killed", LAYERS, TABLE)
        write_old(logs / "old")
    write_run(logs / "running", LAYERS, TABLE)
    with tensorboard(logs) as found:
        yield found


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("whole", "ended · step 11 · just now"),
        ("broken", "crashed with ValueError · step 9 · just now"),
        ("killed", "stopped without a word · step 8 · 3 h ago"),
        ("old", "not live · step 8 · 3 h ago"),
        ("running", "live · step 8"),
    ],
)
def test_the_tab_says_whether_a_run_goes_on(browser: Browser, address: str, run: str, text: str) -> None:
    with opened(browser, alone(address, run=run)) as tab:
        assert tab.frame.locator(".live").inner_text() == text
        card = tab.frame.locator(f'.run[data-run="{run}"] .state').inner_text()
        assert card.removesuffix(" ·") == ("" if run == "old" else text.split(" · ")[0])


def test_an_unknown_run_in_a_link_is_named(browser: Browser, address: str) -> None:
    with opened(browser, alone(address, run="mislaid")) as tab:
        shown = chosen(tab)
        expect(tab.frame.get_by_text("There is no run mislaid here")).to_contain_text(f"Shown is {shown}.")
        tab.frame.locator('.run[data-run="old"]').click()
        tab.settle()
        expect(tab.frame.get_by_text("There is no run")).to_be_hidden()


def chosen(tab: Tab) -> str:
    """The run that is shown."""
    return tab.frame.locator(".run[aria-pressed=true]").get_attribute("data-run") or ""
