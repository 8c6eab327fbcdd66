"""Autoencoders, a VAE, a GAN and contrastive learning on the digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .blocks import HE, Factory, Supervised, adam, frozen, mlp, sgd
from .case import Case, Task, healthy, sick
from .data import digits, loader


@dataclass
class Code:
    """What the encoder of the VAE returns."""

    mean: Tensor
    log_variance: Tensor


class Encoder(nn.Module):
    """Images to the parameters of a Gaussian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(2, outputs=64, gain=HE), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, size), nn.Linear(64, size)

    def forward(self, images: Tensor) -> Code:
        """The code of the images."""
        features = self.trunk(images)
        return Code(self.mean(features), self.log_variance(features))


class Variational(LightningModule):
    """A variational autoencoder whose divergence term is phased in."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(size), mlp(3, inputs=size, outputs=64, gain=HE)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The negative evidence bound."""
        images, _ = batch
        code = self.encoder(images=images)
        sample = code.mean + torch.randn_like(code.mean) * (0.5 * code.log_variance).exp()
        error = F.mse_loss(self.decoder(sample), images, reduction="none").sum(1)
        divergence = 0.5 * (code.mean**2 + code.log_variance.exp() - 1 - code.log_variance).sum(1)
        bound: Tensor = (error + min(1.0, self.global_step / 100) * divergence).mean()
        return bound

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Adversarial(LightningModule):
    """A GAN with manual optimization and alternating updates."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.size = size
        self.generator = mlp(4, inputs=size, outputs=64, gain=HE)
        self.discriminator = mlp(4, lambda: nn.LeakyReLU(0.2), outputs=1, gain=HE)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Update the discriminator, then the generator."""
        real, _ = batch
        of_generator, of_discriminator = cast(list[Any], self.optimizers())
        fake = self.generator(torch.randn(len(real), self.size))
        judged = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake.detach())).mean()
        self.update(of_discriminator, judged)
        fooled = F.softplus(-self.discriminator(fake)).mean()
        self.update(of_generator, fooled)
        return (judged + fooled).detach()

    def update(self, optimizer: Any, loss: Tensor) -> None:
        """One step of one optimizer."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        """One Adam each."""
        parts = self.generator, self.discriminator
        return [torch.optim.Adam(part.parameters(), lr=5e-4, betas=(0.5, 0.99)) for part in parts]


class Penalised(LightningModule):
    """A critic with a gradient penalty: the gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(4, nn.SiLU, outputs=1, gain=HE)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Tell digits from noise with slopes near one."""
        real, _ = batch
        fake = torch.randn_like(real)
        between = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = ((slope.norm(dim=1) - 1) ** 2).mean()
        distance: Tensor = self.critic(fake).mean() - self.critic(real).mean()
        loss: Tensor = distance + 10 * penalty
        return loss

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Contrastive(LightningModule):
    """Two noisy views of the same digit shall be neighbours (InfoNCE)."""

    def __init__(self, embed: nn.Module, optimizer: Factory) -> None:
        super().__init__()
        self.embed, self.optimizer = embed, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of picking the other view among all."""
        images, _ = batch
        first, second = (F.normalize(self.embed(images + 0.5 * torch.randn_like(images)), dim=1) for _ in range(2))
        return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(images)))

    def configure_optimizers(self) -> Any:
        """The given optimizer."""
        return self.optimizer(self.parameters())


class MomentumTeacher(LightningModule):
    """Predicts the features of a slowly following teacher, which gets no gradient on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.predictor = mlp(3, outputs=16, norm=nn.BatchNorm1d), mlp(2, inputs=16, outputs=16)
        self.teacher = frozen(mlp(3, outputs=16, norm=nn.BatchNorm1d))
        self.teacher.load_state_dict(self.student.state_dict())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The angle between prediction and teacher."""
        images, _ = batch
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.02)
            goal = self.teacher(images + 0.3 * torch.randn_like(images))
        guess = self.predictor(self.student(images + 0.3 * torch.randn_like(images)))
        return 1 - F.cosine_similarity(guess, goal).mean()

    def configure_optimizers(self) -> Any:
        """Adam for student and predictor."""
        return torch.optim.Adam([*self.student.parameters(), *self.predictor.parameters()], lr=2e-3)


def autoencoder(activation: type[nn.Module], optimizer: Factory, gain: float | None = None) -> Task:
    """Reconstruct the digits through a code of 16 numbers, with five layers on either side."""
    images, _ = digits()
    net = nn.Sequential(
        mlp(5, activation, outputs=16, gain=gain), activation(), mlp(5, activation, inputs=16, outputs=64, gain=gain)
    )
    return Task(Supervised(net, optimizer, F.mse_loss), loader(images, images))


def on_images(module: LightningModule, batch: int = 64) -> Task:
    """Serve the digits to a module of its own kind."""
    return Task(module, loader(*digits(), batch=batch))


CASES: list[Case] = [
    sick(
        "autoencoder_sigmoid_deep",
        lambda: autoencoder(nn.Sigmoid, adam(3e-3)),
        800,
        "vanishing",
        "saturating_activation",
        "autoencoder_gelu_deep",
        "reconstructs the mean image only",
        remedy="activation.*",
        also="stalled",
    ),
    sick(
        "contrastive_sigmoid_deep",
        lambda: on_images(Contrastive(mlp(8, nn.Sigmoid, outputs=16), sgd())),
        250,
        "vanishing",
        "saturating_activation",
        "contrastive_gelu",
        "all images stay neighbours",
        remedy="activation.*",
        also="stalled",
        held_out=True,
    ),
    healthy("autoencoder_gelu_deep", lambda: autoencoder(nn.GELU, adam(3e-3), HE), 800, "learns"),
    healthy(
        "contrastive_gelu",
        lambda: on_images(Contrastive(mlp(8, nn.GELU, outputs=16, gain=HE), sgd())),
        250,
        "learns",
        held_out=True,
    ),
    healthy(
        "momentum_teacher",
        lambda: on_images(MomentumTeacher()),
        250,
        "the teacher is meant to have no gradient",
        held_out=True,
    ),
    healthy("vae", lambda: on_images(Variational()), 300, "learns"),
    healthy("gan", lambda: on_images(Adversarial()), 800, "alternating updates; the images approach the digits"),
    healthy("gradient_penalty", lambda: on_images(Penalised()), 250, "a second derivative in the loss", held_out=True),
]
