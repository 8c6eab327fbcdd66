"""GPT-2 small under each engine, in two processes: are the norms those of one process, and what does a step cost?

The network is built from its configuration (124 million parameters at its default initialisation), nothing is
downloaded; both ranks run on the CPU. Bare and watched fits take turns in the same processes, and their median step
times are compared.

Use: `python -m benchmarks.engines [--only ddp fsdp1 fsdp2] [--steps 10] [--rounds 2] [--layers 12]`. It needs
`pip install -c constraints.txt -e '.[test,benchmarks]'`, 12 GB of memory, and ten minutes on two cores.

`--only deepspeed1 deepspeed2 deepspeed3` for the stages of DeepSpeed's ZeRO. These run only if asked for, and in the
environment of their tests: `pip install -c constraints.txt -e '.[test]'` first, since DeepSpeed needs torch to be
built, then `DS_BUILD_OPS=0 pip install -c constraints.txt -e '.[deepspeed]'`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from lightning_gradwatch import GradWatch
from tests.setups.fsdp1_cpu import CPUStrategy
from tests.setups.processes import run_ranks, tell

ENGINES = ("ddp", "fsdp1", "fsdp2")
ZERO = {"deepspeed1": 1, "deepspeed2": 2, "deepspeed3": 3}
"""The stages of DeepSpeed, which is imported only for them."""
BUCKETS: dict[str, Any] = {"reduce_bucket_size": 5e7, "allgather_bucket_size": 5e7}
"""Lightning's, of 800 MB each, are meant for a GPU."""
TOKENS, ROWS = 32, 2
WARM_UP_STEPS = 2
CHOICES = "GRADWATCH_BENCHMARK"


class LanguageModel(LightningModule):
    """GPT-2 on random tokens; under FSDP2 each block is sharded by itself."""

    def __init__(self, engine: str, layers: int) -> None:
        super().__init__()
        seed_everything(0, verbose=False)
        self.engine = engine
        self.gpt = GPT2LMHeadModel(GPT2Config(n_layer=layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))

    def configure_model(self) -> None:
        """Shard the blocks, if it is for the model to do so."""
        if self.engine == "fsdp2" and self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in self.gpt.transformer.h:
                fully_shard(block, mesh=mesh)
            fully_shard(self.gpt, mesh=mesh)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of the next token."""
        loss: Tensor = self.gpt(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, so that what a step costs is the network's."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Clock(Callback):
    """Time from step to step, without the first few."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Take the time."""
        now = time.perf_counter()
        if trainer.global_step > WARM_UP_STEPS:
            self.seconds.append(now - self._last)
        self._last = now


def strategy_of(engine: str) -> Any:
    """The strategy for two CPU processes; that of one process for ``"alone"``."""
    if engine == "alone":
        return "auto"
    if engine == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if engine == "fsdp1":
        return CPUStrategy(process_group_backend="gloo", auto_wrap_policy={GPT2Block})
    if engine in ZERO:
        from tests.setups.deepspeed import cpu

        return cpu.CPUStrategy(process_group_backend="gloo", stage=ZERO[engine], **BUCKETS)
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


def fit(engine: str, steps: int, layers: int, directory: Path | None = None) -> list[float]:
    """Train; seconds of each step. It is watched if there is a directory to write to."""
    clock, tokens = (
        Clock(),
        torch.randint(50257, (steps * ROWS * 2, TOKENS), generator=torch.Generator().manual_seed(1)),
    )
    ranks = 1 if engine == "alone" else 2
    own: Any = tokens[int(os.environ.get("RANK", "0")) :: 2] if ranks == 2 else tokens
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy_of(engine),
        max_steps=steps,
        use_distributed_sampler=False,
        callbacks=[clock] if directory is None else [clock, GradWatch()],
        logger=False if directory is None else TensorBoardLogger(directory, name="", version=""),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(engine, layers), DataLoader(own, batch_size=ROWS * (2 // ranks)))
    return clock.seconds


def total_norms(directory: Path) -> list[float]:
    """The total gradient norm of each step, as it was logged."""
    events = EventAccumulator(str(directory), {"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars("gradwatch/total_norm")]


def train_rank() -> None:
    """What each rank does: bare and watched in turns, and then tells the times."""
    _be_quiet()
    engine, steps, rounds, layers = os.environ[CHOICES].split()
    bare, watched = list[float](), list[float]()
    for turn in range(int(rounds)):
        bare += fit(engine, int(steps), int(layers))
        watched += fit(engine, int(steps), int(layers), Path(sys.argv[1]) / f"{turn}")
    tell({"bare": bare, "watched": watched})


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def main() -> None:
    """Print a row for each engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=(*ENGINES, *ZERO), default=ENGINES)
    parser.add_argument("--steps", type=int, default=10, help="steps of each fit")
    parser.add_argument("--rounds", type=int, default=2, help="fits of each kind")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the network; GPT-2 small has 12")
    chosen = parser.parse_args()
    _be_quiet()
    with tempfile.TemporaryDirectory() as place:
        fit("alone", 3, chosen.layers, Path(place))
        alone = total_norms(Path(place))
    print("| engine | norms against one process | step, bare | step, watched |\n|---|---|---|---|")
    for engine in chosen.only:
        os.environ[CHOICES] = f"{engine} {chosen.steps} {chosen.rounds} {chosen.layers}"
        with tempfile.TemporaryDirectory() as place:
            told = run_ranks("from benchmarks import engines; engines.train_rank()", Path(place), timeout_s=1200)[0]
            norms = total_norms(Path(place) / "0")[: len(alone)]
        off = max(abs(ours / truth - 1) for ours, truth in zip(norms, alone, strict=True))
        bare, watched = (statistics.median(told[kind]) for kind in ("bare", "watched"))
        longer = f"{watched:.2f} s ({100 * (watched / bare - 1):+.0f} %)"
        print(f"| {engine} | within {off:.0e} | {bare:.2f} s | {longer} |", flush=True)


if __name__ == "__main__":
    main()
