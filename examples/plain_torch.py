"""GradWatch without a Trainer, in a hand-written training loop, here on scikit-learn's handwritten digits.

It trains a network of twenty sigmoid layers for a few steps (seconds on a CPU). The gradients vanish:

    python examples/plain_torch.py [--directory plain_torch_logs]
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import Alert, watch

STEPS = 60
LOG_EVERY = 10


def make_net(depth: int = 20) -> nn.Sequential:
    """Linear layers with a sigmoid after each but the last."""
    net = nn.Sequential()
    for _ in range(depth - 1):
        net.extend([nn.Linear(64, 64), nn.Sigmoid()])
    return net.append(nn.Linear(64, 10))


def train(net: nn.Module, directory: Path) -> list[Alert]:
    """Train under watch, which takes three lines. Returns the alerts that were raised."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(pixels, torch.tensor(data.target)), batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = (batch for _ in range(STEPS) for batch in loader)

    watched = watch(net, optimizer, directory, log_every_n_steps=LOG_EVERY)
    for inputs, targets in islice(batches, STEPS):
        loss = nn.functional.cross_entropy(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        watched.step(loss)  # before the optimizer's step
        optimizer.step()
    watched.close()
    return watched.alerts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("plain_torch_logs"), help="where the logs go")
    directory = parser.parse_args().directory
    torch.manual_seed(0)
    for alert in train(make_net(), directory):
        print(f"{alert.level.upper()} {alert.kind} at step {alert.step}: {alert.message}")
    print(f"Look at the layers: tensorboard --logdir {directory}")
