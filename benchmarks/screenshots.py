"""Make the README's pictures of the GradWatch tab, from real training runs in a real TensorBoard.

Trains the quickstart's two networks and others (a residual one with clipping, one that blows up into NaN, a recurrent
one, a GAN, a transformer, a sweep, and one that nobody watches), then photographs the tab with Chromium in ten
situations, for the README, for docs, and the others beside the logs, to be looked at:

    python -m benchmarks.screenshots [--directory screenshot_logs] [--pictures examples] [--details docs/pictures]

Needs Playwright and a Chromium: the installed one, or that of ``playwright install chromium``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.quickstart import DeepClassifier, digits
from lightning_gradwatch import GradWatch, GradWatchWarning

STEPS = 300


class Classifier(DeepClassifier):
    """Any network on the digits.

    Args:
        net: The network, from 64 pixels to 10 logits.
    """

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__(nn.ReLU, he_init=True)
        self.net = net


class Swept(DeepClassifier):
    """One of a sweep.

    Args:
        kind: Its activation.
        rate: Its learning rate.
    """

    def __init__(self, kind: type[nn.Module], rate: float) -> None:
        super().__init__(kind, he_init=kind is nn.ReLU)
        self._rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self._rate)


class Jump(pl.Callback):
    """Raises the learning rate a millionfold in mid-training, as a slip in a schedule does."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Once, after two thirds."""
        if trainer.global_step == 2 * STEPS // 3:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 1e6


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.shrink = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two layers make of the input."""
        shrunk: Tensor = self.shrink(torch.relu(self.expand(self.norm(x))))
        return x + shrunk


class Pixels(nn.Module):
    """Reads the picture pixel by pixel: 64 time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 48, batch_first=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """The last state."""
        states: Tensor = self.rnn(pixels.unsqueeze(-1))[0]
        return states[:, -1]


class GAN(pl.LightningModule):
    """Draws digits; two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        widths = (16, 64, 64, 64)
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.generator = nn.Sequential(*(m for pair in layers for m in pair), nn.Linear(64, 64))
        self.discriminator = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of each."""
        real = batch[0]
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        of_generator, of_discriminator = optimizers
        drawn = self.generator(torch.randn(len(real), 16))
        logits = self.discriminator(torch.cat([real, drawn.detach()]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        self._step(of_discriminator, loss)
        verdict = self.discriminator(drawn)
        fooled = nn.functional.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))
        self._step(of_generator, fooled)
        self.log_dict({"loss/discriminator": loss, "loss/generator": fooled})

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator, RMSprop for the discriminator."""
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.RMSprop(self.discriminator.parameters(), lr=1e-3),
        ]


class Encoder(nn.Module):
    """A transformer over the rows of a digit.

    Args:
        blocks: How deep it is.
    """

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.zeros(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """From ``(batch, 64)`` pixels to ``(batch, 10)`` logits."""
        rows: Tensor = self.embed(pixels.unflatten(1, (8, 8))) + self.place
        logits: Tensor = self.head(self.blocks(rows).mean(1))
        return logits


def residual(blocks: int = 10) -> nn.Sequential:
    """A residual network, whose layers form groups."""
    return nn.Sequential(nn.Linear(64, 64), *(Block(64) for _ in range(blocks)), nn.Linear(64, 10))


def train(
    name: str, model: pl.LightningModule, directory: Path, *callbacks: pl.Callback, steps: int = STEPS, seed: int = 0
) -> None:
    """Train one model; its logs go to a folder of its name."""
    pl.seed_everything(seed, verbose=False)
    data: DataLoader[tuple[Tensor, ...]] = digits()
    trainer = pl.Trainer(
        callbacks=list(callbacks),
        logger=TensorBoardLogger(directory, name=name, version=""),
        max_steps=2 * steps if isinstance(model, GAN) else steps,
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(model, data)


def runs() -> dict[str, Callable[[Path], None]]:
    """The runs by name."""

    def of(name: str, make: Callable[[], pl.LightningModule], *callbacks: Callable[[], pl.Callback]) -> None:
        found[name] = lambda directory: train(name, make(), directory, *(c() for c in callbacks))

    found: dict[str, Callable[[Path], None]] = {}
    of("sigmoid", lambda: DeepClassifier(nn.Sigmoid, he_init=False), GradWatch)
    of("relu_he", lambda: DeepClassifier(nn.ReLU, he_init=True), GradWatch)
    of("learning_rate_jump", lambda: DeepClassifier(nn.ReLU, he_init=True), Jump, GradWatch)
    of("residual_clipped", lambda: Classifier(residual()), lambda: GradWatch(auto_clip=True))
    of("recurrent", lambda: Classifier(nn.Sequential(Pixels(), nn.Linear(48, 10))), GradWatch)
    of("gan", GAN, GradWatch)
    of("transformer", lambda: Classifier(nn.Sequential(Encoder())), GradWatch)
    of("without_gradwatch", lambda: DeepClassifier(nn.ReLU, he_init=True))
    return found


@contextlib.contextmanager
def tensorboard(directory: Path, *arguments: str, word: str = "sigmoid") -> Iterator[str]:
    """TensorBoard on a free port; its address, once it knows the run of this name."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory), "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    try:
        for _ in range(240):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{address}/data/plugin/gradwatch/runs") as answer,
            ):
                if f'"{word}"' in answer.read().decode():
                    break
            time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait()


def sweep(directory: Path) -> None:
    """Short runs that differ in depth, activation and learning rate: more than fit a row of the tab."""
    for name, kind in (("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh), ("relu", nn.ReLU)):
        for rate in (1e-4, 1e-3, 1e-2, 1e-1):
            for seed in range(5):
                train(f"{name}_lr{rate:g}_seed{seed}", Swept(kind, rate), directory, GradWatch(), steps=40, seed=seed)


def photograph(address: str, pictures: Path, details: Path, others: Path) -> None:
    """Photograph single runs: for the README, for docs, and all others to be looked at."""
    sick = {"run": "sigmoid", "step": "149"}
    with chromium() as browser:
        for scheme in ("light", "dark"):
            shoot(browser, address, pictures / f"tab_{scheme}.png", sick, color_scheme=scheme)
            transformer, lost = details / f"transformer_{scheme}.png", details / f"lost_{scheme}.png"
            shoot(browser, address, transformer, {"run": "transformer"}, part="section.card", color_scheme=scheme)
            shoot(browser, address, lost, {"run": "sigmoid"}, width=900, part=".banner .lost", color_scheme=scheme)
        for name in ("relu_he", "learning_rate_jump", "residual_clipped", "recurrent", "gan"):
            shoot(browser, address, others / f"{name}.png", {"run": name})
        shoot(browser, address, others / "compared.png", {"run": "sigmoid", "compare": "relu_he"})
        shoot(browser, address, others / "phone.png", {"run": "sigmoid"}, width=400)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The installed browser, or Playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def shoot(
    browser: Any, address: str, picture: Path, state: dict[str, str], width: int = 1280, part: str = "", **how: str
) -> None:
    """Photograph the tab, or a part of it, in a state that is written as in a link."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": width, "height": 1040}, **how)
    link = "".join(f"&p.gradwatch.{name}={value}" for name, value in state.items())
    page.goto(f"{address}/#gradwatch{link}")
    frame = page.frame_locator("iframe")
    frame.locator("main[aria-busy=false]").wait_for()
    page.wait_for_timeout(500)
    (frame.locator(part).first if part else page).screenshot(path=picture)
    shrink(picture)
    page.close()


def shrink(picture: Path) -> None:
    """256 colours are enough for a screenshot, and make a third of the file; rare ones, as of NaN, are among them."""
    from PIL import Image

    with Image.open(picture) as image:
        reduced = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(picture, optimize=True)


def main() -> None:
    """Train, serve, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("screenshot_logs"), help="where the logs go")
    parser.add_argument("--pictures", type=Path, default=Path("examples"), help="where the pictures go")
    parser.add_argument("--details", type=Path, default=Path("docs/pictures"), help="where pictures of parts go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=GradWatchWarning)
    for name, run in runs().items():
        if not (arguments.directory / name).exists():
            run(arguments.directory)
    others = arguments.directory / "pictures"
    with tensorboard(arguments.directory) as address:
        photograph(address, arguments.pictures, arguments.details, others)
    many = arguments.directory.with_name(f"{arguments.directory.name}_sweep")
    if not many.exists():
        sweep(many)
    with tensorboard(many, word="relu_lr0.1_seed4") as address, chromium() as browser:
        shoot(browser, address, others / "sweep.png", {})


if __name__ == "__main__":
    main()
