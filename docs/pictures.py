"""Make the pictures of these pages from real training runs, in a real TensorBoard and with the real command.

Trains a sick network for each kind of alert (cases of the zoo) and the networks of the README's picture:

    python -m docs.pictures [--directory picture_logs] [--pictures docs/pictures]

Needs Playwright, a Chromium on the path, and a font.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, FrameLocator
from rich.console import Console
from rich.text import Text

from benchmarks import screenshots
from benchmarks.zoo import CASES
from benchmarks.zoo.run import prepare
from lightning_gradwatch import GradWatch

SICK = {
    "vanishing": "sigmoid_mlp20_sgd",
    "vanishing_through_time": "rnn_recall_T100",
    "exploding": "late_rnn_explosion",
    "nonfinite": "nan_batch",
    "dead": "late_dead_relu",
    "detached": "detached_encoder",
    "stalled": "lr_too_small",
    "underflow": "fp16_underflow",
}
"""A case of the zoo for each kind of alert."""
PARTS = dict.fromkeys(("vanishing_through_time", "exploding"), (".banner", ".sequence"))
"""What is shown of the tab; the banner and the heatmap, unless it is told here."""
STEPS = {"vanishing_through_time": {"step": 24}}
"""The step at which the tab stands, where it is not the last one."""
NUMBERED = (".strip", ".banner", ".toolbar", ".grid", ".side", ".lanes-box", ".lines", ".card.layer")
"""What the picture of the whole tab puts numbers on, in the order of reading/tab.md."""
EXAMPLE = "born"
"""The picture of `examples/nan_birth.py`."""
GALLERY = ("mlp", "rnn", "gan")
"""Rows of the gallery whose pictures are taken from a run of `python examples/gallery`."""
COLOURS = 64
Scheme = Literal["light", "dark"]
PAPER: dict[Scheme, str] = {"light": "white", "dark": "#2d3136"}
"""Each picture of the tab is taken twice, as the pages are read in light and dark; the colour around its parts."""


class LogLoss(Callback):
    """Logs the loss, as the cases of the zoo do not."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Of every batch."""
        pl_module.log("loss", outputs["loss"].float())


def train(kind: str, directory: Path) -> None:
    """Train the sick network for a kind of alert; the logs go to a folder of that name."""
    case = CASES[SICK[kind]]
    seed_everything(0, verbose=False)
    task = case.build()
    Trainer(
        max_steps=case.steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[GradWatch(), LogLoss()],
        logger=TensorBoardLogger(directory, name=kind, version=""),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **task.trainer,
    ).fit(task.module, task.data)


def train_example(directory: Path) -> None:
    """Run the example whose NaN is traced; the logs go to a folder of that name."""
    example = Path(__file__).parents[1] / "examples" / "nan_birth.py"
    command = [sys.executable, str(example), "--epochs", "2", "--directory", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    (directory / "lightning_logs" / "version_0").rename(directory / EXAMPLE)


def open_tab(
    browser: Browser, address: str, run: str, width: int, height: int, scheme: Scheme, **state: Any
) -> tuple[Any, Any]:
    """A page with the tab open at a run, and the frame that it is in."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    link = "".join(f"&p.gradwatch.{name}={value}" for name, value in {"run": run, **state}.items())
    page.goto(f"{address}/#gradwatch{link}")
    frame = page.frame_locator("iframe")
    frame.locator("main[aria-busy=false]").wait_for()
    page.wait_for_timeout(500)
    return page, frame


def box(frame: FrameLocator, selector: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a part of the page."""
    place = frame.locator(selector).first.bounding_box()
    assert place is not None, selector
    return place["x"], place["y"], place["x"] + place["width"], place["y"] + place["height"]


def photograph_alert(browser: Browser, address: str, kind: str, scheme: Scheme, path: Path) -> None:
    """What the tab shows of a run with an alert of this kind."""
    page, frame = open_tab(browser, address, kind, 960, 1800, scheme, **STEPS.get(kind, {}))
    places = [box(frame, part) for part in PARTS.get(kind, (".banner", ".card >> nth=0"))]
    images = [cut(page, *place) for place in places]
    page.close()
    whole = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), PAPER[scheme])
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    save(whole, path)


def photograph_tab(browser: Browser, address: str, scheme: Scheme, path: Path) -> None:
    """The whole tab, with numbers on its parts."""
    page, frame = open_tab(browser, address, "sigmoid", 1240, 1500, scheme, step=149)
    corners = [box(frame, part)[:2] for part in NUMBERED]
    bottom = box(frame, NUMBERED[-1])[3]
    image = cut(page, 0, 0, 1240, bottom + 12)
    page.close()
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=17)
    for number, (x, y) in enumerate(corners, 1):
        centre = x - 6 if x > 60 else 13, y + 12
        draw.circle(centre, 12, fill="#c2185b", outline="white", width=2)
        draw.text(centre, str(number), fill="white", font=font, anchor="mm")
    save(image, path)


def photograph_report(browser: Browser, run: Path, path: Path) -> None:
    """What ``gradwatch report`` prints in a terminal with colours."""
    command = [sys.executable, "-m", "lightning_gradwatch", "report", str(run)]
    colours = {"COLUMNS": "110", "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    told = subprocess.run(command, env={**os.environ, **colours}, capture_output=True, text=True, check=False)
    assert told.returncode == 1, told.stderr
    console = Console(record=True, width=110, file=io.StringIO())
    console.print(Text.from_ansi(told.stdout))
    page = browser.new_page(viewport={"width": 1000, "height": 1000})
    page.set_content(f"<body style='margin:0'>{console.export_svg(title=f'gradwatch report {run.name}')}</body>")
    place = page.locator("svg").first.bounding_box()
    assert place is not None
    save(cut(page, 0, 0, place["width"], place["height"]), path)
    page.close()


def cut(page: Any, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """A part of the page."""
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))).convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    """Few colours are enough, and make a small file."""
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Train, serve, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("picture_logs"), help="where the logs go")
    parser.add_argument("--gallery", type=Path, default=Path("gallery_logs"), help="where the gallery has run")
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"), help="where the pictures go")
    arguments = parser.parse_args()
    alerts, tab = arguments.directory / "alerts", arguments.directory / "tab"
    prepare()
    warnings.filterwarnings("ignore")
    for kind in SICK:
        if not (alerts / kind).exists():
            train(kind, alerts)
    if not (alerts / EXAMPLE).exists():
        train_example(arguments.directory / "example")
        (arguments.directory / "example" / EXAMPLE).rename(alerts / EXAMPLE)
    for name, run in screenshots.runs().items():
        if not (tab / name).exists():
            run(tab)
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    for row in GALLERY:
        if (arguments.gallery / f"{row}.png").exists():
            with Image.open(arguments.gallery / f"{row}.png") as image:
                save(image.convert("RGB"), arguments.pictures / f"gallery_{row}.png")
    with screenshots.chromium() as browser:
        with screenshots.tensorboard(alerts) as address:
            for kind, scheme in product((*SICK, EXAMPLE), PAPER):
                photograph_alert(browser, address, kind, scheme, arguments.pictures / f"{kind}_{scheme}.png")
        with screenshots.tensorboard(tab) as address:
            for scheme in PAPER:
                photograph_tab(browser, address, scheme, arguments.pictures / f"tab_{scheme}.png")
        photograph_report(browser, tab / "sigmoid", arguments.pictures / "report.png")


if __name__ == "__main__":
    main()
