"""A small GPT that learns to write like this very file, under watch: with Lightning Fabric, or in a plain torch loop.

Both loops accumulate gradients, clip them, and save a checkpoint, as public training scripts do (about a minute on a
CPU):

    python examples/small_gpt.py [--loop fabric|plain|both] [--directory small_gpt_logs]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradwatch import watch
from lightning_gradwatch.fabric import GradWatch

CONTEXT, WIDTH, HEADS, DEPTH = 64, 64, 4, 4
STEPS, ACCUMULATED, BATCH = 60, 2, 16
TEXT = torch.tensor(list(Path(__file__).read_bytes()))


class Block(nn.Module):
    """Attention and a multilayer perceptron, each beside a way that goes past it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states in and out, of shape ``(batch, time, WIDTH)``."""
        parts = self.qkv(self.norm_1(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.proj(mixed.transpose(1, 2).flatten(-2))
        changed: Tensor = hidden + self.mlp(self.norm_2(hidden))
        return changed


class SmallGPT(nn.Module):
    """Predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, text: Tensor) -> Tensor:
        """Bytes of shape ``(batch, time)``; logits of shape ``(batch, time, 256)``."""
        places = torch.arange(text.shape[1], device=text.device)
        logits: Tensor = self.head(self.blocks(self.bytes(text) + self.places(places)))
        return logits


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the text, and the same pieces one byte later."""
    random = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(TEXT) - CONTEXT - 1, (BATCH,), generator=random)
        pieces = TEXT[starts[:, None] + torch.arange(CONTEXT + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, in nats per byte."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same model whenever it is called."""
    torch.manual_seed(0)
    model = SmallGPT()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def with_fabric(directory: Path) -> GradWatch:
    """Train in Fabric; halfway everything is saved, the watch with it."""
    fabric = Fabric(accelerator="cpu", devices=1, loggers=TensorBoardLogger(directory, name="fabric", version=""))
    model, optimizer = fabric.setup(*make())
    watched = GradWatch(fabric, model, optimizer, log_every_n_steps=10)
    data = batches(seed=0)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "watch": watched}
    for step in range(STEPS):
        for place in range(ACCUMULATED):
            inputs, targets = next(data)
            with fabric.no_backward_sync(model, enabled=place < ACCUMULATED - 1):
                fabric.backward(loss_of(model(inputs), targets) / ACCUMULATED)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)  # the norms on record are those before
        optimizer.step()
        optimizer.zero_grad()
        if step == STEPS // 2:
            fabric.save(directory / "fabric.ckpt", state)
    watched.close()
    return watched


def in_a_plain_loop(directory: Path) -> Any:
    """The same by hand."""
    model, optimizer = make()
    watched = watch(model, optimizer, directory / "plain", log_every_n_steps=10)
    data = batches(seed=0)
    for step in range(STEPS):
        loss = torch.zeros(())
        for _ in range(ACCUMULATED):
            inputs, targets = next(data)
            part = loss_of(model(inputs), targets) / ACCUMULATED
            part.backward()
            loss += part.detach()
        watched.step(loss)  # before the gradients are clipped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == STEPS // 2:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "watch": watched.state_dict()}
            torch.save(state, directory / "plain.ckpt")
    watched.close()
    return watched


LOOPS = {"fabric": with_fabric, "plain": in_a_plain_loop}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=[*LOOPS, "both"], default="both", help="which loop trains")
    parser.add_argument("--directory", type=Path, default=Path("small_gpt_logs"), help="where logs and checkpoints go")
    arguments = parser.parse_args()
    for name, train in LOOPS.items():
        if arguments.loop in (name, "both"):
            losses = train(arguments.directory).history.numbers["loss"].values
            print(f"{name}: the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}")
    print(f"Look at the layers: tensorboard --logdir {arguments.directory}")
