"""The trainings: each healthy, and at the edge where there is one; some to choose a policy by, some held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.clipping import later, networks
from benchmarks.clipping import trainings as t
from benchmarks.clipping.trainings import Clip, adam, muon, sgd

Train = Callable[[int, Clip], list[float]]


@dataclass(frozen=True)
class Task:
    """What is trained, in words and as a function of the seed and of what clips; None where there is no such case."""

    name: str
    healthy: tuple[str, Train] | None
    edge: tuple[str, Train] | None
    is_held_out: bool = False

    def case(self, case: str) -> tuple[str, Train] | None:
        """The one or the other."""
        return self.healthy if case == "healthy" else self.edge


POST, PRE = t.transformer(norm_first=False), t.transformer(norm_first=True)
ADAMW = adam(3e-3, weight_decay=0.01)

TASKS = (
    Task(
        "LSTM",
        ("SGD at 3", t.language_model(t.lstm(), sgd(3.0))),
        ("SGD at 30", t.language_model(t.lstm(), sgd(30.0))),
    ),
    Task(
        "transformer (post-norm)",
        ("momentum at 0.1", t.language_model(POST, sgd(0.1, 0.9))),
        ("momentum at 0.5", t.language_model(POST, sgd(0.5, 0.9))),
    ),
    Task(
        "residual MLP of 17 layers",
        ("SGD at 0.05", t.classifier(t.RESIDUAL, sgd(0.05))),
        ("SGD at 0.2", t.classifier(t.RESIDUAL, sgd(0.2))),
    ),
    Task(
        "CNN",
        ("momentum at 0.03", t.classifier(t.CNN, sgd(0.03, 0.9))),
        ("momentum at 0.2", t.classifier(t.CNN, sgd(0.2, 0.9))),
    ),
    Task("regression, norms fall by 100", ("momentum at 0.01", t.regression(sgd(0.01, 0.9))), None),
    Task("LSTM, 3 % bad batches", None, ("SGD at 3", t.language_model(t.lstm(), sgd(3.0), bad_batches=0.03))),
    Task(
        "LSTM of two layers",
        ("momentum at 0.5", t.language_model(t.lstm(2, 48), sgd(0.5, 0.9))),
        ("momentum at 8", t.language_model(t.lstm(2, 48), sgd(8.0, 0.9))),
    ),
    Task(
        "transformer, AdamW",
        ("warm-up and cosine", t.language_model(PRE, ADAMW, schedule=t.warm_up_and_cosine)),
        ("3 % bad batches", t.language_model(PRE, ADAMW, bad_batches=0.03)),
    ),
    Task("transformer, far too fast", None, ("momentum at 1", t.language_model(POST, sgd(1.0, 0.9)))),
    Task(
        "GAN",
        ("Adam at 3e-3", t.adversarial(adam(3e-3, betas=(0.5, 0.999)))),
        ("SGD at 0.3", t.adversarial(sgd(0.3))),
    ),
    Task(
        "PPO",
        ("Adam at 1e-3", t.policy_gradient(adam(1e-3))),
        ("SGD at 0.03", t.policy_gradient(sgd(0.03))),
    ),
    Task("CNN, Muon", ("Muon at 0.02", t.classifier(t.CNN, muon(0.02))), None),
    Task("LSTM, accumulation", ("two batches, Adam", t.language_model(t.lstm(), adam(0.01), accumulate=2)), None),
    # held out: written before the policy was changed, and run with it once it had been chosen
    Task(
        "plain MLP of 13 layers",
        ("momentum at 0.003", t.classifier(networks.plain, sgd(0.003, 0.9))),
        ("momentum at 0.03", t.classifier(networks.plain, sgd(0.03, 0.9))),
        True,
    ),
    Task(
        "ViT",
        ("momentum at 0.05", t.classifier(networks.Patches, sgd(0.05, 0.9))),
        ("momentum at 0.2", t.classifier(networks.Patches, sgd(0.2, 0.9))),
        True,
    ),
    Task(
        "GRU that adds",
        ("Adam at 0.01", later.adding(adam(0.01))),
        ("momentum at 0.5", later.adding(sgd(0.5, 0.9))),
        True,
    ),
    Task(
        "VAE",
        ("Adam at 1e-3", later.autoencoder(adam(1e-3))),
        ("SGD at 0.1", later.autoencoder(sgd(0.1))),
        True,
    ),
    Task(
        "Wasserstein GAN",
        ("Adam at 1e-3", later.wasserstein(adam(1e-3, betas=(0.5, 0.9)))),
        ("SGD at 0.07", later.wasserstein(sgd(0.07))),
        True,
    ),
    Task(
        "actor-critic",
        ("momentum at 0.01", later.actor_critic(sgd(0.01, 0.9))),
        ("momentum at 0.1", later.actor_critic(sgd(0.1, 0.9))),
        True,
    ),
    Task("CNN with batch norm", ("momentum at 0.1", t.classifier(networks.normalised, sgd(0.1, 0.9))), None, True),
)
