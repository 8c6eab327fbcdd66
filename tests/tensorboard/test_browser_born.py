"""The banner of a run whose NaN was traced, in a real Chromium: the stage, the line of code, the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from lightning_gradwatch import GradWatch
from tests.births.test_in_training import fitted
from tests.builders import birth
from tests.cli.command import alert
from tests.tensorboard.browser import alone, opened, tensorboard, write_run
from tests.tensorboard.test_browser import EVIL

pytestmark = pytest.mark.slow


def test_a_traced_run_shows_stage_line_and_sample(browser: Browser, tmp_path: Path) -> None:
    fitted(tmp_path / "run", GradWatch(on_nonfinite="skip"))
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        born = tab.frame.locator(".banner .born")
        assert born.locator("li").all_inner_texts() == [
            "batch", "weights", "forward pass", "loss", "backward pass", "optimizer",
        ]  # fmt: skip
        assert born.locator("li[aria-current=step]").all_inner_texts() == ["forward pass"]
        assert born.locator("p").inner_text().startswith("test_in_training.py · line ")
        assert born.locator("p").inner_text().endswith(" · net.0 · sample 2")
        assert born.locator("pre").inner_text().strip() == "return torch.log(x.abs().sum(1, keepdim=True)) + x"


def test_what_a_log_says_of_it_stays_text(browser: Browser, tmp_path: Path) -> None:
    evil: dict[str, Any] = {**birth(), "module": EVIL, "file": EVIL, "code": EVIL}
    write_run(tmp_path / "run", ["a", "b"], {step: [1.0, 1.0] for step in range(3)}, alert(birth=evil))
    with tensorboard(tmp_path) as address, opened(browser, alone(address)) as tab:
        assert EVIL in tab.frame.locator(".banner .born pre").inner_text()
        assert tab.evaluate("window.hacked") is None
        assert tab.evaluate("document.querySelectorAll('main script, main img').length") == 0
