"""Wrong arguments are refused with the argument, the rule, what came, and the cure."""

from __future__ import annotations

import math
from collections import UserList
from typing import Any

import pytest
from torch import nn

from lightning_gradwatch import GradWatch, MaxNorm, ZScore
from tests.tasks import Classifier, digits, quiet_trainer, small_net


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("sample_at", "optimizer", '"step" or "backward"'),
        ("dense_steps", -1, "an integer of 0 or more"),
        ("dense_steps", 2.5, "an integer of 0 or more"),
        ("sample_every_n_steps", 0, "an integer of 1 or more"),
        ("log_every_n_steps", 0, "an integer of 1 or more"),
        ("log_every_n_steps", -5, "an integer of 1 or more"),
        ("histogram_every", -1, "an integer of 0 or more"),
        ("group_by", 0, "an integer of 1 or more"),
        ("vanishing_threshold", 0.0, r"a number in \(0, 1\]"),
        ("vanishing_threshold", 1.5, r"a number in \(0, 1\]"),
        ("vanishing_threshold", math.nan, r"a number in \(0, 1\]"),
        ("vanishing_threshold", "high", r"a number in \(0, 1\]"),
        ("max_overhead", 0, r"a number in \(0, 1\]"),
        ("max_overhead", 1.5, r"a number in \(0, 1\]"),
        ("max_overhead", math.nan, r"a number in \(0, 1\]"),
        ("max_overhead", "low", r"a number in \(0, 1\]"),
        ("include", [3], "a glob or a list of globs"),
        ("exclude", [""], "a glob or a list of globs"),
        ("flight_steps", -1, "an integer of 0 or more"),
        ("tensorboard_url", "localhost:6006", "an address"),
    ],
)
def test_at_construction(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be {rule}.* came. To cure it: "):
        GradWatch(**{argument: value})


def test_a_list_of_another_class_is_a_list() -> None:
    """As those are that configuration tools make of a list in a file."""
    watch = GradWatch(
        include=UserList(["net.*"]),
        auto_clip=UserList([MaxNorm(1.0, include=UserList(["net.0"])), "zscore"]),
        notify=UserList(["json://localhost"]),
    )
    assert watch.settings.include == ("net.*",)
    assert [type(policy) for policy in watch.settings.policies] == [MaxNorm, ZScore]
    assert list(watch.settings.policies[0].include) == ["net.0"]
    assert len(watch.config.addresses) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "encoder.*"}, "`include` must be globs that each match a layer, but 'encoder.*' came"),
        ({"include": ["net.0", "nte.2"]}, "but 'nte.2' came. To cure it: the model's layers are net.0, net.2, net.4"),
        ({"exclude": "*"}, "`exclude` must be globs that leave a layer to watch"),
    ],
)
def test_a_selection_of_nothing_stops_before_training(arguments: dict[str, Any], message: str) -> None:
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        quiet_trainer(GradWatch(**arguments)).fit(Classifier(small_net()), digits())


def test_sharded_strategies_are_refused_by_name() -> None:
    from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy

    trainer = quiet_trainer()
    trainer.strategy.__class__ = SingleDeviceXLAStrategy
    with pytest.raises(ValueError, match=r"`strategy` must be .* but SingleDeviceXLAStrategy came.*cure"):
        GradWatch().setup(trainer, Classifier(small_net()), "fit")


@pytest.mark.parametrize(
    ("zero", "came"),
    [
        ({}, "'stage 0' came. To cure it: strategy=\"deepspeed_stage_2\""),
        ({"stage": 2, "offload_optimizer": {"device": "nvme"}}, "'offload_optimizer to NVMe .*ZeRO-Infinity"),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, "'offload_param to NVMe .*ZeRO-Infinity"),
        ({"stage": 2, "zenflow": {"topk_ratio": 0.1}}, "'ZenFlow' came"),
    ],
)
def test_deepspeed_is_refused_where_its_gradients_cannot_be_reached(zero: dict[str, Any], came: str) -> None:
    from lightning.pytorch.strategies import DeepSpeedStrategy

    trainer = quiet_trainer()
    trainer.strategy.__class__ = DeepSpeedStrategy
    vars(trainer.strategy)["config"] = {"zero_optimization": zero}
    with pytest.raises(ValueError, match=f"`strategy` must be .*{came}"):
        GradWatch().setup(trainer, Classifier(small_net()), "fit")


def test_fsdp_without_the_models_own_parameters_is_refused() -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    vars(trainer.strategy)["kwargs"] = {"use_orig_params": False}
    with pytest.raises(ValueError, match=r"`strategy` must be one that keeps .* but 'use_orig_params=False' came.*"):
        GradWatch().setup(trainer, Classifier(small_net()), "fit")


def test_backward_sampling_with_several_optimizers_is_refused() -> None:
    import torch

    class Two(Classifier):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(small_net())
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError("training must not start")

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)]

    with pytest.raises(ValueError, match=r'`sample_at` must be "step" .*2 optimizers'):
        quiet_trainer(GradWatch(sample_at="backward")).fit(Two(), digits())


def test_other_stages_are_none_of_our_business() -> None:
    class Tested(Classifier):  # type: ignore[misc, valid-type]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch[0])

    quiet_trainer(GradWatch(include="nothing.*")).test(Tested(small_net()), digits())
