"""The arguments of a watch: checked once, the same with and without Lightning."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, MaxNorm
from lightning_gradwatch.config import configure
from tests.tasks import small_net


def test_the_callback_takes_the_same_arguments_with_the_same_defaults() -> None:
    named = {name: p.default for name, p in inspect.signature(GradWatch).parameters.items()}
    assert named == {name: p.default for name, p in inspect.signature(configure).parameters.items()}


class OneRule:
    """Never finds anything."""

    kind, title = "one", "One"

    def update(self, observation: Any, history: Any) -> None:
        return None


class OneQuantity:
    """The same number for all layers."""

    name, label, hint, scale, unit, missing = "one", "One", "One everywhere", "linear", "", "none"

    def measure(self, weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
        return gradients[0].new_ones(())


def test_no_argument_is_lost_on_the_way() -> None:
    chosen: dict[str, Any] = {
        "sample_at": "step", "dense_steps": 3, "sample_every_n_steps": 4, "log_every_n_steps": 5, "histogram_every": 6,
        "include": "0", "exclude": ["2"], "group_by": 7, "layer_cards": 9, "auto_clip": 8.0, "compose_clipping": True,
        "on_nonfinite": "skip", "on_spike": "skip", "vanishing_threshold": 0.9, "notify": "json://localhost",
        "tensorboard_url": "http://localhost", "on_alert": "stop", "flight_steps": 11, "progress_bar": True,
        "max_overhead": 0.1, "prescribe": 12.0, "rules": [OneRule()], "quantities": [OneQuantity()],
        "record": "runs",
    }  # fmt: skip
    assert set(chosen) == set(inspect.signature(configure).parameters)
    left_out = {name: value for name, value in chosen.items() if name != "notify"}  # addresses are not compared
    assert configure(**left_out) != configure()
    of_the_callback, directly = GradWatch(**chosen).config, configure(**chosen)
    for field in dataclasses.fields(directly):
        if field.name != "addresses":
            assert getattr(of_the_callback, field.name) == getattr(directly, field.name)
    assert len(of_the_callback.addresses) == len(directly.addresses) == 1


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        configure().group_by = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "intervenes", "acts"),
    [
        ({}, False, False),
        ({"auto_clip": True}, True, False),
        ({"on_nonfinite": "raise"}, True, False),
        ({"on_spike": "skip"}, True, False),
        ({"on_alert": {"dead": "stop"}}, False, True),
        ({"on_alert": {"dead": "warn"}}, False, False),
    ],
)
def test_what_it_asks_for(arguments: dict[str, Any], intervenes: bool, acts: bool) -> None:
    config = configure(**arguments)
    assert (config.intervenes, config.acts) == (intervenes, acts)


def test_a_selection_of_nothing_is_refused() -> None:
    configure(include="0", auto_clip=MaxNorm(1.0, include="2")).check_layers(small_net())
    for arguments in ({"include": "9"}, {"exclude": "*"}, {"auto_clip": MaxNorm(1.0, include="9")}):
        with pytest.raises(ValueError, match=r"GradWatch: `(include|exclude)` must be globs"):
            configure(**arguments).check_layers(small_net())  # type: ignore[arg-type]


def test_optimizers_that_cannot_be_served_are_refused() -> None:
    weights = list(nn.Linear(2, 2).parameters())
    plain, newton = torch.optim.SGD(weights), torch.optim.LBFGS(weights)
    configure(auto_clip=True).check_policies({"": plain})
    configure().check_policies({"": newton})
    with pytest.raises(ValueError, match="`auto_clip` must be None with LBFGS"):
        configure(auto_clip=True).check_policies({"": newton})
    with pytest.raises(ValueError, match=r'`on_spike` must be "keep" with LBFGS.*cure'):
        configure(on_spike="skip").check_policies({"": newton})
    with pytest.raises(ValueError, match="Adam"):
        configure(auto_clip=MaxNorm(1.0, optimizer="Adam")).check_policies({"": plain})
    configure(sample_at="backward").check_sampling(num_optimizers=1)
    with pytest.raises(ValueError, match='`sample_at` must be "step" where there are several optimizers'):
        configure(sample_at="backward").check_sampling(num_optimizers=2)


@pytest.mark.slow
def test_it_is_checked_where_lightning_is_not_installed() -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning", "pytorch_lightning", "lightning_utilities"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent())
from lightning_gradwatch.config import configure
try:
    configure(dense_steps=-1)
except ValueError as refusal:
    print(refusal)
"""
    assert "`dense_steps` must be" in subprocess.check_output([sys.executable, "-c", code], text=True)
