"""What holds for every remedy."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.core.tensors import tensors_in
from lightning_gradwatch.trials.model import CannotApply, TrialModel
from tests.trials.models import (
    KEYS,
    LastStep,
    assert_same,
    convolutions,
    cross_entropy,
    digits,
    hooks,
    images,
    learn,
    mlp,
    sequences,
    trial_model,
)


class Odd(nn.Module):
    """Lists of parameters, a module dictionary, nested sequences, one module twice, tied and frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(16), torch.ones(16)])
        self.parts = nn.ModuleDict(
            {"a": mlp(3, nn.Tanh).append(nn.Linear(4, 16)), "b": nn.Sequential(nn.Linear(16, 16))}
        )
        self.shared = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())
        self.table, self.head = nn.Embedding(4, 16), nn.Linear(16, 4, bias=False)
        self.head.weight = self.table.weight
        self.parts["b"].requires_grad_(False)
        self.spare = nn.Linear(16, 16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, *, flip: bool = False) -> Tensor:
        for scale in self.scales:
            x = self.shared(x) * scale
        x = self.drop(self.parts["b"](torch.tanh(self.parts["a"](x))))
        scores: Tensor = self.head(-x if flip else x)
        return scores


class Lit(LightningModule):
    """A network of Lightning's, whose forward calls its activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.ModuleList(nn.Linear(16, 16) for _ in range(6)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        scores: Tensor = self.head(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


NETWORKS: dict[str, tuple[Any, Any]] = {
    "sigmoid": (lambda: mlp(6, nn.Sigmoid), digits()),
    "relu": (lambda: mlp(6, lambda: nn.ReLU(inplace=True)), digits()),
    "convolutions": (lambda: convolutions(5, nn.Tanh), images()),
    "rnn": (lambda: LastStep(nn.RNN(4, 16, batch_first=True)), sequences()),
    "lstm": (lambda: LastStep(nn.LSTM(4, 16, batch_first=True, bidirectional=True)), sequences()),
    "odd": (Odd, digits()),
    "lightning": (Lit, digits()),
}


THIRD_PARTY = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "vit", "bert")]
"""With transformers, which come with the extra ``[gallery]``."""


def third_party(name: str) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        return transformers.GPT2LMHeadModel(config), torch.randint(30, (4, 7))
    if name == "vit":
        config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=4, **small)
        return transformers.ViTForImageClassification(config), images()
    config = transformers.BertConfig(vocab_size=30, num_labels=4, **small)
    return transformers.BertForSequenceClassification(config), (torch.randint(30, (4, 7)), torch.randint(4, (4,)))


def its_loss(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = (
        model(batch, labels=batch).loss if isinstance(batch, Tensor) else model(batch[0], labels=batch[1]).loss
    )
    return loss


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("network", [*NETWORKS, *THIRD_PARTY])
def test_a_remedy_applies_or_changes_nothing(network: str, key: str) -> None:
    """Whatever it is applied to: the shapes of outputs, tied and frozen weights, dtypes, random numbers."""
    torch.manual_seed(0)
    net, batch, loss = third_party_or_own(network)
    ill = trial_model(net, batch, loss)
    before = {name: tensor.clone() for name, tensor in ill.model.state_dict().items()}
    modules = [(name, type(m), hooks(m)) for name, m in ill.model.named_modules()]
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    torch.manual_seed(5)
    random, reasons = torch.get_rng_state(), []
    try:
        KEYS[key].apply(ill)
    except CannotApply as refusal:
        reasons.append(str(refusal))
    if reasons:
        assert 5 < len(reasons[0]) < 90
        assert_same(ill.model.state_dict(), before)
        assert [(name, type(m), hooks(m)) for name, m in ill.model.named_modules()] == modules
        assert torch.equal(torch.get_rng_state(), random)
        return
    again = trial_model(net, batch, loss)
    torch.manual_seed(5)
    KEYS[key].apply(again)
    assert_same(again.model.state_dict(), ill.model.state_dict())
    shown = ill.code or KEYS[key].code
    assert ast.parse(shown).body or ".forward: " in shown
    assert max(map(len, shown.splitlines())) <= 120
    if ill.code and ".forward: " not in ill.code:
        assert_code_does_it(ill, net, network)
    for name in frozen:
        assert torch.equal(ill.model.get_parameter(name), before[name])
        assert not ill.model.get_parameter(name).requires_grad
    aliases = [
        sorted(n for n, p in m.named_parameters(remove_duplicate=False) if p is q)
        for m in (net,)
        for q in m.parameters()
    ]
    for group in (names for names in aliases if len(names) > 1):
        assert len({id(ill.model.get_parameter(name)) for name in group}) == 1
    learn(ill.model, batch, loss)
    first = next(p for p in ill.model.parameters() if p.requires_grad)
    assert first.grad is not None
    assert first.grad.isfinite().all()
    if network in NETWORKS:
        assert ill.model(batch[0]).shape == (len(batch[0]), 4)


def assert_code_does_it(ill: TrialModel, net: nn.Module, network: str) -> None:
    """The lines shown for this very model make the same model of it."""
    torch.manual_seed(5)
    exec(ill.code, {"model": net, "nn": nn, "torch": torch})
    assert_same(net.state_dict(), ill.model.state_dict())
    given = ill.batch[0] if network in (*NETWORKS, "vit", "bert") else ill.batch
    outputs = []
    for model in (net, ill.model):
        torch.manual_seed(6)
        outputs.append(next(tensors_in(model(given))))
    assert torch.equal(*outputs)


def third_party_or_own(network: str) -> tuple[nn.Module, Any, Any]:
    if network in NETWORKS:
        make, batch = NETWORKS[network]
        return make(), batch, Lit.training_step if make is Lit else cross_entropy
    return *third_party(network), its_loss


@pytest.mark.parametrize("key", ["init.he", "norm.batch", "norm.layer", "residual.layers", "activation.relu_he"])
def test_a_lightning_module_trains_and_is_stored_with_the_lines_shown(key: str, tmp_path: Path) -> None:
    ill = trial_model(Lit(), digits(), Lit.training_step)
    KEYS[key].apply(ill)
    module = Lit()
    exec(ill.code, {"model": module, "nn": nn, "torch": torch})
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=4, accelerator="cpu", enable_checkpointing=False, **quiet)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer.fit(module, DataLoader(TensorDataset(*digits()), batch_size=8))
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters() if name.endswith("weight"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Lit()
    exec(ill.code, {"model": again, "nn": nn, "torch": torch})
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(again.eval()(digits()[0]), module.eval()(digits()[0]))


def test_names_are_unique_and_say_something() -> None:
    assert len(KEYS) > 30
    names = [remedy.name for remedy in KEYS.values()]
    assert len(set(names)) == len(names)
    for key, remedy in KEYS.items():
        assert key == "prenorm" or key.count(".") == 1
        assert remedy.causes <= set(get_args(Cause))
        assert remedy.kinds <= set(get_args(AlertKind))
        assert remedy.causes | remedy.kinds


def test_every_cause_that_a_copy_can_answer_has_a_remedy() -> None:
    answered = {cause for remedy in KEYS.values() for cause in remedy.causes}
    assert set(get_args(Cause)) - answered == {"detached", "target_scale", "unstable_op", "unknown"}  # code and data


def test_clipping_is_for_explosions_and_a_higher_rate_for_what_does_not_move() -> None:
    for key, remedy in KEYS.items():
        if key.startswith("clip."):
            assert remedy.kinds == {"exploding", "nonfinite"}
            assert not remedy.causes & {"normalisation_order", "no_skip_or_norm", "small_init", "input_scale"}
        if key.startswith("lr.x"):
            assert remedy.kinds == {"stalled"}
            assert not remedy.causes
