"""Perceptrons that learn, and therefore must not raise an alert, however odd their gradients look."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR
from torch.utils.checkpoint import checkpoint

from .blocks import (
    HE,
    XAVIER,
    NoGrad,
    Residual,
    Supervised,
    adam,
    frozen,
    layers,
    mlp,
    on_digits,
    pretrained,
    sgd,
    weighted,
)
from .case import Case, Task, borderline, healthy
from .data import digits, loader, parity, text, waves


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank update that starts at zero (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = frozen(base)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen output plus the update."""
        output: Tensor = self.base(x) + self.up(self.down(x))
        return output


class Mixture(nn.Module):
    """Eight experts of which a biased gate picks one per sample, so that some are rarely used."""

    def __init__(self, width: int, experts: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp(3, inputs=width, outputs=width, gain=HE) for _ in range(experts))
        with torch.no_grad():
            self.gate.bias.copy_(torch.linspace(1.5, -1.5, experts))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the chosen expert's output by its probability."""
        weight, choice = self.gate(x).softmax(dim=-1).max(dim=-1, keepdim=True)
        output = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = (choice == index).squeeze(-1)
            if chosen.any():
                output[chosen] = expert(x[chosen])
        mixed: Tensor = x + weight * output
        return mixed


class Repeated(nn.Module):
    """One residual layer, applied many times."""

    def __init__(self, body: nn.Module, times: int) -> None:
        super().__init__()
        self.body, self.times = body, times

    def forward(self, x: Tensor) -> Tensor:
        """Apply the same layer over and over."""
        for _ in range(self.times):
            x = x + 0.2 * torch.tanh(self.body(x))
        return x


class Checkpointed(nn.Module):
    """Recomputes the activations of `body` in the backward pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Run without storing activations."""
        output: Tensor = checkpoint(self.body, x.requires_grad_(), use_reentrant=False)
        return output


class TwoHeads(nn.Module):
    """A trunk with a head that is used and one whose output is ignored, or that never runs."""

    def __init__(self, run_both: bool) -> None:
        super().__init__()
        self.trunk, self.head, self.spare = mlp(4, outputs=32, gain=HE), nn.Linear(32, 10), nn.Linear(32, 5)
        self.run_both = run_both

    def forward(self, x: Tensor) -> Tensor:
        """The scores of the first head."""
        features = F.relu(self.trunk(x))
        if self.run_both:
            self.spare(features)
        scores: Tensor = self.head(features)
        return scores


class Hashed(nn.Module):
    """Predicts a character from the three before it, each triple hashed into a large sparse table."""

    def __init__(self, rows: int = 20_000, width: int = 32) -> None:
        super().__init__()
        self.rows = rows
        self.table = nn.Embedding(rows, width, sparse=True)
        self.head = mlp(3, inputs=width, outputs=96, gain=HE)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of the next character."""
        scores: Tensor = self.head(self.table((codes * torch.tensor([1, 96, 9216])).sum(-1) % self.rows))
        return scores


class MultiTask(Supervised):
    """The class, and as an auxiliary task the ink of the image from half-way up the trunk."""

    def __init__(self) -> None:
        net = nn.ModuleDict(
            {"lower": mlp(3, outputs=32, gain=HE), "auxiliary": nn.Linear(32, 1), "upper": mlp(3, inputs=32, gain=HE)}
        )
        super().__init__(net, adam())
        self.parts = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The weighted sum of both losses."""
        images, labels = batch
        middle = self.parts["lower"](images)
        ink = F.mse_loss(self.parts["auxiliary"](middle), images.mean(1, keepdim=True))
        return F.cross_entropy(self.parts["upper"](F.relu(middle)), labels) + 0.3 * ink


class Distilled(Supervised):
    """A student of a teacher that merely runs under no_grad and is left out of the optimizer."""

    def __init__(self) -> None:
        super().__init__(mlp(4, gain=HE), adam())
        self.teacher = NoGrad(pretrained(mlp(3, gain=HE), *digits()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The divergence of the student from the teacher."""
        images, _ = batch
        student, teacher = self.net(images).log_softmax(-1), self.teacher(images).softmax(-1)
        return F.kl_div(student, teacher, reduction="batchmean")

    def configure_optimizers(self) -> Any:
        """Only the student learns."""
        return self.optimizer(self.net.parameters())


class Quadratic(Supervised):
    """L-BFGS, which evaluates the loss several times per step."""

    def configure_optimizers(self) -> Any:
        """Ignore the usual factory."""
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4, history_size=5)


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    """Gaussian log-likelihood, which becomes negative."""
    return F.gaussian_nll_loss(output[:, :1], target, F.softplus(output[:, 1:]) + 1e-4)


def fine_tuned(trunk_frozen: bool = True) -> Task:
    """Fine-tune the head of a network trained on the digits 0-4 on all digits."""
    images, labels = digits()
    trunk = mlp(4, outputs=32, gain=HE)
    pretrained(nn.Sequential(trunk, nn.ReLU(), nn.Linear(32, 10)), images[labels < 5], labels[labels < 5])
    return on_digits(nn.Sequential(frozen(trunk), nn.ReLU(), mlp(3, inputs=32, gain=HE)), adam(3e-3))


def adapted() -> Task:
    """Adapt a network trained on the digits to their mirror images, by low-rank updates only."""
    images, labels = digits()
    net = pretrained(mlp(4, gain=HE), images, labels)
    parts = [Adapted(part) if isinstance(part, nn.Linear) else part for part in net.children()]
    return Task(Supervised(nn.Sequential(*parts), adam(5e-3)), loader(images.flip(1), labels))


def unlearnable() -> Task:
    """Random labels."""
    images, labels = digits()
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(6))]
    return Task(Supervised(mlp(4, gain=HE), sgd(0.01)), loader(images, shuffled))


def trigrams() -> Task:
    """The next character from the three before, with sparse gradients."""
    codes, following = text(32)
    windows, targets = codes.unfold(1, 3, 1).flatten(0, 1), following[:, 2:].flatten()
    return Task(Supervised(Hashed(), lambda p: torch.optim.SGD(p, lr=1.0)), loader(windows, targets, batch=128))


def regression(amplitude: float = 1.0, **options: Any) -> Task:
    """Regress a smooth function."""
    net = mlp(4, nn.SiLU, inputs=4, outputs=1, gain=HE)
    if amplitude < 1:
        nn.init.zeros_(layers(net)[-1].weight)
    return Task(Supervised(net, adam(3e-3), F.mse_loss, **options), loader(*waves(amplitude=amplitude)))


def occasional_outliers(step: int, images: Tensor) -> Tensor:
    """Every fortieth batch comes thirtyfold."""
    return images * 30 if step % 40 == 39 else images


def warm_up(steps: int, start: float = 0.0) -> Any:
    """Raise the learning rate linearly from (a fraction of) zero."""
    return lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, start + step / steps))


def restarts(optimizer: Optimizer) -> CosineAnnealingWarmRestarts:
    """Anneal to zero and restart."""
    return CosineAnnealingWarmRestarts(optimizer, T_0=50)


def dropped() -> nn.Sequential:
    """A perceptron that drops most of its units."""
    return mlp(4, lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.6)), width=128, gain=0.8)


def reparametrised(wrap: Any) -> nn.Module:
    """A perceptron whose weights are re-parametrised."""
    net = mlp(6, gain=HE)
    for layer in layers(net):
        wrap(layer)
    return net


def zero_branches() -> nn.Sequential:
    """Residual branches whose last layer starts at zero."""
    net = nn.Sequential(nn.Linear(64, 64))
    for _ in range(6):
        branch = mlp(2, outputs=64, gain=HE)
        nn.init.zeros_(layers(branch)[-1].weight)
        net.append(Residual(branch))
    return net.append(nn.Linear(64, 10))


ACTIVATIONS = [
    healthy("relu_bn_mlp20", lambda: on_digits(mlp(20, norm=nn.BatchNorm1d), sgd()), 300, "learns"),
    healthy(
        "sigmoid_bn_mlp10",
        lambda: on_digits(mlp(10, nn.Sigmoid, norm=nn.BatchNorm1d), adam(3e-3)),
        250,
        "sigmoids, but normalised: learns",
    ),
    healthy("gelu_mlp8_adam", lambda: on_digits(mlp(8, nn.GELU, gain=HE), adam()), 250, "learns"),
    healthy("silu_mlp6", lambda: on_digits(mlp(6, nn.SiLU, gain=HE), sgd()), 250, "learns"),
    healthy("ln_mlp12", lambda: on_digits(mlp(12, norm=nn.LayerNorm, gain=HE), sgd(0.02)), 300, "learns"),
    healthy("elu_mlp8", lambda: on_digits(mlp(8, nn.ELU, gain=1.2), sgd()), 200, "learns"),
    healthy(
        "selu_mlp16",
        lambda: on_digits(mlp(16, nn.SELU, gain=XAVIER), sgd(0.02)),
        250,
        "self-normalising: learns",
        held_out=True,
    ),
    healthy("softplus_mlp4", lambda: on_digits(mlp(4, nn.Softplus, gain=XAVIER), adam()), 200, "learns"),
    healthy(
        "inplace_relu_mlp8",
        lambda: on_digits(mlp(8, lambda: nn.ReLU(inplace=True), gain=HE), sgd()),
        200,
        "activations in place: learns",
    ),
    healthy("weight_norm_mlp6", lambda: on_digits(reparametrised(weight_norm), adam(3e-3)), 200, "learns"),
    healthy(
        "spectral_norm_mlp6", lambda: on_digits(reparametrised(spectral_norm), adam(3e-3)), 300, "learns", held_out=True
    ),
    healthy("dropout_heavy", lambda: on_digits(dropped(), adam()), 300, "noisy, but learns", held_out=True),
]

LOSSES = [
    healthy(
        "tiny_loss_sgd",
        lambda: on_digits(mlp(4, gain=HE), sgd(5e4), loss=weighted(1e-6)),
        250,
        "a loss of 1e-6, with a learning rate to match",
    ),
    healthy(
        "tiny_loss_adam",
        lambda: on_digits(mlp(4, gain=HE), adam(eps=1e-14), loss=weighted(1e-6)),
        250,
        "a loss of 1e-6: Adam does not mind, with a small eps",
    ),
    healthy("tiny_targets", lambda: regression(1e-3), 300, "targets of 1e-3: learns", held_out=True),
    healthy(
        "hinge_to_exact_zero",
        lambda: on_digits(mlp(3, gain=HE), adam(3e-3), loss=F.multi_margin_loss),
        900,
        "a perfect fit: loss and gradients become exactly zero",
    ),
    healthy(
        "gaussian_nll_negative",
        lambda: Task(Supervised(mlp(4, nn.SiLU, inputs=4, outputs=2), adam(3e-3), gaussian), loader(*waves(0.01, 0.3))),
        400,
        "the loss falls below zero",
    ),
    borderline("noise_labels", unlearnable, 250, "stalled", "", "nothing to learn but the chance level"),
    borderline(
        "loss_spikes",
        lambda: on_digits(mlp(4, gain=HE), sgd(0.01), feed=occasional_outliers),
        250,
        "exploding",
        "bad_data learning_rate input_scale",
        "spikes every 40 steps, from which it recovers",
    ),
    healthy("multi_task_auxiliary", lambda: Task(MultiTask(), loader(*digits())), 250, "both tasks learn"),
    healthy(
        "parity_plateau",
        lambda: Task(
            Supervised(mlp(3, inputs=12, outputs=2, gain=HE, width=128), sgd(0.02)), loader(*parity(12, 3), batch=128)
        ),
        500,
        "a plateau at chance level, then sudden progress",
    ),
]

LONG = [
    healthy("converged_mlp4", lambda: on_digits(mlp(4, gain=HE), adam()), 1200, "converged long before the end"),
    healthy("converged_deep_sgd", lambda: on_digits(mlp(10, gain=HE), sgd(0.02)), 1000, "converged"),
    healthy(
        "converged_floor_fullbatch",
        lambda: Task(
            Supervised(mlp(2, inputs=4, outputs=1, width=16), sgd(0.05), F.mse_loss), loader(*waves(0.5), batch=2048)
        ),
        1500,
        "full batch, down to the noise floor",
    ),
    healthy("huge_batch", lambda: on_digits(mlp(6, gain=HE), sgd(0.1), batch=1797), 150, "one batch is all data"),
]

TUNING = [
    healthy("finetune_frozen", fine_tuned, 200, "the frozen trunk is meant to have no gradient"),
    healthy(
        "linear_probe",
        lambda: on_digits(nn.Sequential(frozen(mlp(2, outputs=32, gain=HE)), nn.ReLU(), nn.Linear(32, 10)), adam(1e-2)),
        250,
        "only the last layer trains, on purpose",
    ),
    healthy("lora", adapted, 250, "the updates start at exactly zero"),
    healthy(
        "distilled_teacher",
        lambda: Task(Distilled(), loader(*digits())),
        200,
        "the teacher runs under no_grad, on purpose",
    ),
    healthy("unused_params", lambda: on_digits(TwoHeads(run_both=False), adam()), 200, "one head never runs"),
    borderline(
        "ignored_head",
        lambda: on_digits(TwoHeads(run_both=True), adam()),
        200,
        "detached",
        "detached",
        "one head runs and is ignored: useless, yet the loss falls",
    ),
    healthy("sparse_embeddings", trigrams, 600, "most rows get no gradient in a step"),
    healthy(
        "moe_rare_experts",
        lambda: on_digits(nn.Sequential(Mixture(64), Mixture(64), nn.Linear(64, 10)), adam()),
        250,
        "some experts are rarely chosen",
    ),
    healthy("zero_init_residual", lambda: on_digits(zero_branches(), adam()), 200, "branches start at exactly zero"),
    healthy(
        "shared_layer_times12",
        lambda: on_digits(nn.Sequential(Repeated(nn.Linear(64, 64), 12), nn.Linear(64, 10)), adam()),
        250,
        "one layer runs twelve times in a step",
        held_out=True,
    ),
    healthy(
        "checkpointed",
        lambda: on_digits(
            nn.Sequential(Checkpointed(mlp(4, outputs=64, gain=HE)), nn.ReLU(), nn.Linear(64, 10)), adam()
        ),
        250,
        "activations are recomputed",
        held_out=True,
    ),
]

SCHEDULES = [
    healthy(
        "lr_warmup",
        lambda: on_digits(mlp(8, gain=HE), adam(), schedule=warm_up(100)),
        300,
        "the learning rate starts at exactly zero",
    ),
    healthy(
        "cosine_restarts",
        lambda: on_digits(mlp(6, gain=HE), sgd(0.05), schedule=restarts),
        250,
        "the learning rate falls to zero and restarts",
    ),
    healthy(
        "lbfgs",
        lambda: Task(Quadratic(mlp(3, nn.Tanh, gain=XAVIER), sgd()), loader(*digits(), batch=1797)),
        40,
        "several evaluations per step",
        held_out=True,
    ),
    healthy(
        "accumulated_gelu8",
        lambda: Task(
            Supervised(mlp(8, nn.GELU, gain=HE), adam()), loader(*digits(), batch=16), {"accumulate_grad_batches": 4}
        ),
        150,
        "gradient accumulation",
    ),
]

CASES: list[Case] = ACTIVATIONS + LOSSES + LONG + TUNING + SCHEDULES
