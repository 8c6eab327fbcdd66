"""Train a few steps with the installed package and nothing but its own dependencies."""

import subprocess
import sys
import urllib.request
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytorch_lightning as pl
import torch
from tensorboard import program

import lightning_gradwatch
from lightning_gradwatch import GradWatch


class Model(pl.LightningModule):
    """The smallest model that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Mean of the outputs."""
        loss: torch.Tensor = self.net(batch).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


assert version("lightning-gradwatch") == lightning_gradwatch.__version__
assert files("lightning_gradwatch").joinpath("py.typed").is_file()
watch = GradWatch()
trainer = pl.Trainer(callbacks=[watch], max_steps=3, accelerator="cpu", enable_checkpointing=False)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(8, 4)))
assert trainer.callback_metrics["gradwatch/alerts"] == 0
log_dir = trainer.log_dir
assert log_dir is not None
board = program.TensorBoard()
board.configure(argv=[None, "--logdir", log_dir, "--port", "0"])
address = board.launch()
for path, expected in (("plugins_listing", b'"gradwatch"'), ("plugin/gradwatch/static/index.js", b"export")):
    with urllib.request.urlopen(f"{address}data/{path}") as answer:
        assert expected in answer.read(), path
gradwatch = Path(sys.executable).with_name("gradwatch")
assert subprocess.run([gradwatch, "report", log_dir, "--json"], stdout=subprocess.DEVNULL).returncode == 0
print("the wheel works:", lightning_gradwatch.__version__)
