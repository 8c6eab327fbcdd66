"""Trains models of several kinds under DeepSpeed, one process per rank; run by their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.pipe import PipelineModule
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_gradwatch import GradWatch
from tests.setups.deepspeed.deepspeed_training import STAGES, Regression, adam, measure, refusal, sgd
from tests.setups.sharded_training import BATCH, make_net

VOCABULARY, NUM_TOKENS = 50, 12


def gpt2() -> nn.Module:
    """Two blocks, and a head that shares its matrix with the embedding."""
    torch.manual_seed(0)
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**size, **no_dropout))


def text() -> Tensor:
    """Random tokens."""
    return torch.randint(VOCABULARY, (64 * BATCH, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


class LanguageModel(Regression):
    """Learns the next token."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(input_ids=batch, labels=batch).loss
        return loss / self.divisor


def partly_frozen() -> nn.Sequential:
    """The first two layers are frozen, of another one only the matrix, and of the last one only the bias."""
    net = make_net("fsdp")
    net[:2].requires_grad_(False)
    for parameter in (net[3].weight, net[5].bias):
        parameter.requires_grad_(False)
    return net


def adam_of_trained(parameters: Any) -> torch.optim.Optimizer:
    """It is given what is trained, and nothing else."""
    return adam([parameter for parameter in parameters if parameter.requires_grad])


def even_net() -> nn.Sequential:
    """Two halves with the same shapes, so that DeepSpeed does not notice that ranks hold different ones."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


class Pipeline(Regression):
    """The layers are spread over stages, of which each rank holds one."""

    num_stages = 2

    def configure_model(self) -> None:
        if not isinstance(self.net, PipelineModule):
            self.net = PipelineModule([*self.net.children()], num_stages=self.num_stages, partition_method="uniform")


class OneStage(Pipeline):
    """Every rank holds all layers."""

    num_stages = 1


MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model": LanguageModel, "net": gpt2, "make_optimizer": sgd},
    "partly frozen": {"net": partly_frozen, "make_optimizer": adam_of_trained},
    "one stage": {"model": OneStage},
}
"""How each is trained under DeepSpeed."""
ALONE: dict[str, dict[str, Any]] = {**MODELS, "one stage": {}}
"""How each is trained in one process."""
AT: dict[str, tuple[int, ...]] = {"gpt2": (2, 3), "partly frozen": STAGES, "one stage": (1,)}
"""At which stages; DeepSpeed itself wants pipelines at stage 1 at most."""


def measure_model(stage: int, name: str, directory: Path) -> dict[str, Any]:
    """What was seen of one of them; in one process at stage 0."""
    options = (MODELS if stage else ALONE)[name]
    return measure(stage, directory, **options, data=text() if name == "gpt2" else None)


def measure_models(directory: Path) -> dict[str, Any]:
    """All of them."""
    return {
        f"{name} {stage}": measure_model(stage, name, directory / f"{name} {stage}")
        for name, stages in AT.items()
        for stage in stages
    }


def refuse_pipeline(directory: Path) -> dict[str, Any]:
    """A model of which each rank holds one half."""
    return {"two stages": refusal(1, GradWatch(), model=Pipeline, net=even_net)}
