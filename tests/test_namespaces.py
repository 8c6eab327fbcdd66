"""Both Lightning namespaces, together and alone, and the command line interface of each."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_gradwatch import GradWatch, _namespaces
from tests.tasks import digits, make_classifier_class, small_net

NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("in_a_list", [True, False])
def test_it_is_a_callback_of_both(namespace: str, in_a_list: bool) -> None:
    pl = importlib.import_module(namespace)
    watch = GradWatch()
    assert isinstance(watch, pl.Callback)
    trainer = pl.Trainer(
        callbacks=[watch] if in_a_list else watch,
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(make_classifier_class(pl)(small_net()), digits())
    assert "gradwatch/vanishing" in trainer.callback_metrics
    assert list(watch.profile) == ["net.0", "net.2", "net.4"]


ALONE = """
import sys, warnings
warnings.simplefilter("ignore")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from lightning_gradwatch import GradWatch
import {namespace} as pl
assert not {absent!r} & set(sys.modules), "the other package was imported after all"
import torch
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        return self.net(batch).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
watch = GradWatch()
trainer = pl.Trainer(callbacks=watch, max_steps=2, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, accelerator="cpu")
trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(8, 4)))
print(sorted(k for k in trainer.callback_metrics))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("namespace", "absent"), list(zip(NAMESPACES, ["pytorch_lightning", "lightning"], strict=True))
)
def test_one_of_the_packages_is_enough(namespace: str, absent: str) -> None:
    code = ALONE.format(namespace=namespace, absent={absent})
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "['gradwatch/alerts', 'gradwatch/vanishing']" in result.stdout, result.stderr


def test_with_neither_the_error_says_what_to_install() -> None:
    code = ALONE.format(namespace="torch", absent={"lightning", "pytorch_lightning"})
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "GradWatch needs `lightning` or `pytorch-lightning`" in result.stderr
    assert "pip install pytorch-lightning" in result.stderr


US = "lightning_gradwatch"
ORDERS = [[US], [US, "pytorch_lightning"], ["lightning.pytorch", US, "pytorch_lightning"]]
MORE_ORDERS = [["lightning.pytorch", US], [US, "lightning.pytorch"], [US, "pytorch_lightning", "lightning.pytorch"]]

IMPORTED = f"""
import json, os, sys
import torch, torchmetrics, lightning_utilities.core.rank_zero as rank_zero

def report(order):
    classes = []
    for name in order:
        module = __import__(name)
        if name == {US!r}:
            watch = module.GradWatch()
            classes = [module.GradWatch, type("Mine", (module.GradWatch,), {{}}), type(watch)]
    used = [name for name in {NAMESPACES} if name in sys.modules]
    bases = [sys.modules[name].Callback for name in used]
    return [rank_zero.log.name, rank_zero.rank_zero_deprecation_category.__module__, used,
            all(issubclass(one, base) for one in classes for base in bases)]

def settle(order):  # in a process of its own: what is imported stays
    ours, theirs = os.pipe()
    if not os.fork():
        os.write(theirs, json.dumps(report(order)).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(ours, 10_000))

print(json.dumps([[settle(order), settle([n for n in order if n != {US!r}])] for order in json.loads(sys.argv[1])]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
@pytest.mark.parametrize("orders", [ORDERS, pytest.param(MORE_ORDERS, marks=pytest.mark.slow)])
def test_in_any_order_lightning_is_as_without_us_and_we_are_callbacks_of_all_that_is_in_use(
    orders: list[list[str]],
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", IMPORTED, json.dumps(orders)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for order, (with_us, without_us) in zip(orders, json.loads(result.stdout), strict=True):
        assert with_us == without_us, order
        assert with_us[2:] == [[name for name in NAMESPACES if name in order], True], order


BROKEN = """
import sys
from lightning_gradwatch import GradWatch

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "pytorch_lightning.callbacks":
            raise ImportError("broken on purpose")

broken = Broken()
sys.meta_path.insert(0, broken)
try:
    import pytorch_lightning
except ImportError as failure:
    print(failure)
sys.meta_path.remove(broken)
import pytorch_lightning
assert issubclass(GradWatch, pytorch_lightning.Callback)
assert GradWatch.__mro__.count(pytorch_lightning.Callback) == 1
"""

AT_ONCE = """
import threading
from lightning_gradwatch import GradWatch
threads = [threading.Thread(target=__import__, args=(name,)) for name in ("lightning.pytorch", "pytorch_lightning")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import lightning.pytorch, pytorch_lightning
print(all(issubclass(GradWatch, namespace.Callback) for namespace in (lightning.pytorch, pytorch_lightning)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "said"), [(BROKEN, "broken on purpose"), (AT_ONCE, "True")])
def test_a_namespace_may_fail_to_import_at_first_and_both_may_come_at_once(code: str, said: str) -> None:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, said), result.stderr


def test_an_import_does_not_fail_because_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise TypeError("on purpose")

    monkeypatch.setattr(_namespaces, "adopt", fails)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with contextlib.redirect_stdout(None):
        importlib.import_module("this")


CLI = """
import warnings
warnings.simplefilter("ignore")
from {namespace}.cli import LightningCLI
from {namespace}.demos.boring_classes import BoringModel, BoringDataModule
cli = LightningCLI(BoringModel, BoringDataModule)
(watch,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "GradWatch"]
config = watch.config
print("steps", cli.trainer.global_step, config.sample_at, config.group_by, config.log_every_n_steps, config.settings)
"""


POLICIES = [
    {"class_path": "lightning_gradwatch.MaxNorm", "init_args": {"max_norm": 2.5, "include": "layer"}},
    {"class_path": "lightning_gradwatch.AdaGC", "init_args": {"beta": 0.9}},
]


@pytest.mark.parametrize("namespace", [NAMESPACES[0], pytest.param(NAMESPACES[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("intervention", "read"),
    [
        pytest.param(
            {"sample_at": "backward"}, r"backward 2 5 .* policies=\(\), on_nonfinite='keep'", marks=pytest.mark.slow
        ),
        (
            {"auto_clip": POLICIES, "on_nonfinite": "skip"},
            r"policies=\(MaxNorm\(include=\('layer',\),.*max_norm=2.5\), AdaGC\(.*beta=0.9,.*on_nonfinite='skip'",
        ),
    ],
)
def test_the_command_line_interface_takes_every_argument(
    namespace: str, intervention: dict[str, Any], read: str, tmp_path: Path
) -> None:
    arguments = {
        "dense_steps": 3,
        "sample_every_n_steps": 4,
        "log_every_n_steps": 5,
        "histogram_every": 0,
        "include": ["lay*"],
        "exclude": "head.*",
        "group_by": 2,
        "vanishing_threshold": 0.6,
        "compose_clipping": True,
        **intervention,
    }
    config = {
        "trainer": {
            "callbacks": [{"class_path": "lightning_gradwatch.GradWatch", "init_args": arguments}],
            "max_steps": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        }
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", CLI.format(namespace=namespace), "fit", "--config", "run.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Settings(schedule=Schedule(dense_steps=3, every_n_steps=4)" in result.stdout, result.stderr
    assert "include=('lay*',), exclude=('head.*',), vanishing_threshold=0.6," in result.stdout
    assert re.search("steps 2 .*" + read, result.stdout), result.stdout


@pytest.mark.slow
def test_a_configuration_file_of_the_command_line_interface_makes_the_same_again(tmp_path: Path) -> None:
    """Printed, read and printed again: with every kind of argument, by name on the command line."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", CLI.format(namespace=NAMESPACES[0]), "fit", *arguments]
        (tmp_path / "config.yaml").unlink(missing_ok=True)  # which Lightning leaves, and does not overwrite
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    added, options = "--trainer.callbacks+=lightning_gradwatch.GradWatch", "--trainer.callbacks."
    given = ("include=['layer']", "on_alert={nonfinite: stop}", "auto_clip=1.5", "dense_steps=7", "max_overhead=0.5")
    own = [added, *(options + argument for argument in given)]
    quiet = [
        "--trainer.max_steps=2",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
    ]
    printed = run(*own, *quiet, "--print_config")
    (tmp_path / "printed.yaml").write_text(printed)
    assert run("--config", "printed.yaml", "--print_config") == printed
    assert run("--config", "printed.yaml").splitlines()[-1] == run(*own, *quiet).splitlines()[-1]
    (callback,) = yaml.safe_load(printed)["trainer"]["callbacks"]
    assert callback["init_args"]["on_alert"] == {"nonfinite": "stop"}
    assert (callback["init_args"]["auto_clip"], callback["init_args"]["dense_steps"]) == (1.5, 7)


@pytest.mark.slow
def test_the_command_line_interface_refuses_a_wrong_type(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        CLI.format(namespace=NAMESPACES[0]),
        "fit",
        "--trainer.callbacks+=lightning_gradwatch.GradWatch",
    ]
    command.append("--trainer.callbacks.dense_steps=many")
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode != 0
    assert "dense_steps" in result.stderr
