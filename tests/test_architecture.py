"""The house: who may import whom."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lightning_gradwatch
from lightning_gradwatch.core.clip import POLICIES

PACKAGE = Path(lightning_gradwatch.__file__).parent
ROOMS = {
    "alerts", "architecture", "clip", "cost", "detector", "figures", "histogram", "history", "inputs", "layers",
    "measure", "metrics", "probe", "quantities", "schedule", "shards", "transfer", "updates", "window",
}  # fmt: skip
ALLOWED = (
    {("histogram", "measure"), ("updates", "measure"), ("updates", "figures")}
    | {("alerts", "history"), ("detector", "history"), ("detector", "alerts")}
    | {(room, "shards") for room in ("clip", "layers", "measure", "probe", "updates")}
    | {("clip", "measure"), ("clip", "layers"), ("probe", "inputs")}
)  # helpers of the same duty
OF_LIGHTNING = {
    *("_lightning", "_clipping_by_hand", "_places", "_namespaces", "_factory", "callback", "guest"),
    *("fabric", "_fabric_host"),
}
"""Rooms that know Lightning's Trainers; nothing else does."""
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
_OF_TRAINING = ("core.watcher", "core.measure", "core.probe", "core.clip", "outputs.sinks", "outputs.tensorboard")


def imports_of(source: str) -> Iterator[str]:
    """Modules that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What in ``source``, standing at ``path`` in the package, breaks the plan of the house."""
    room = path.removesuffix(".py").replace("/", ".")
    found = []
    for name in imports_of(source):
        own = name.removeprefix("lightning_gradwatch.")
        is_own = name.startswith("lightning_gradwatch")
        if room.startswith("core.") and name.split(".")[0] in ("lightning", "pytorch_lightning", "tensorboard"):
            found.append(f"{room} imports {name}: core knows torch and the standard library only")
        if room.startswith("core.") and is_own and not own.startswith("core"):
            found.append(f"{room} imports {name}: core imports nothing above it")
        here, there = room.removeprefix("core.").split(".")[0], own.removeprefix("core.").split(".")[0]
        if here in ROOMS and is_own and there in ROOMS - {here} and (here, there) not in ALLOWED:
            found.append(f"{room} imports {name}: rooms do not import each other")
        if (
            room.startswith("trials.")
            and room != "trials.prescriber"
            and is_own
            and own.split(".")[0] not in ("core", "trials")
        ):
            found.append(f"{room} imports {name}: remedies are tried with torch and core alone")
        if room not in ("__init__", "guest") and is_own and own.split(".")[0] == "callback":
            found.append(f"{room} imports {name}: only __init__ and guest import callback")
        if room not in {"__init__", *OF_LIGHTNING} and is_own and own.split(".")[0] in OF_LIGHTNING:
            found.append(f"{room} imports {name}: a session knows its host, and no trainer")
        if not room.startswith(("cli.", "notebook.", "__main__")) and is_own and own.split(".")[0] == "cli":
            found.append(f"{room} imports {name}: nothing imports the command but what shows the same in a notebook")
        if room.startswith(("cli.", "notebook.")) and (name.split(".")[0] == "torch" or own.startswith(_OF_TRAINING)):
            found.append(f"{room} imports {name}: the command reads, and needs nothing of a training")
        if room not in ("_lightning", "_fabric_host") and name.split(".")[0] in _LIGHTNING:
            found.append(f"{room} imports {name}: only _lightning and _fabric_host speak to Lightning")
    return found


def test_every_file_keeps_to_the_plan() -> None:
    files = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(files) > 10
    assert [v for path, source in files.items() for v in violations(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/measure.py", "from lightning.pytorch import Trainer"),
        ("core/detector.py", "def f():\n    import tensorboard.plugins"),
        ("core/history/depth.py", "from lightning_gradwatch.core.alerts import ALERTS"),
        ("core/probe.py", "from lightning_gradwatch.core.layers import ParameterLayout"),
        ("core/clip.py", "from lightning_gradwatch import _lightning"),
        ("alerts_file.py", "from lightning_gradwatch.callback import GradWatch"),
        ("callback.py", "import pytorch_lightning as pl"),
        ("session.py", "from lightning_gradwatch import _lightning"),
        ("sinks.py", "def f():\n    from lightning_gradwatch._lightning import warn"),
        ("host.py", "from lightning.pytorch import Trainer"),
        ("trials/runner.py", "from lightning_gradwatch._lightning import Trainer"),
        ("trials/runner.py", "from lightning.pytorch import LightningModule"),
        ("sinks.py", "from lightning_gradwatch.cli.logs import Logs"),
        ("cli/logs.py", "import torch"),
        ("notebook/report.py", "import torch"),
        ("cli/page/data.py", "from lightning_gradwatch.core.watcher import Watcher"),
    ],
)
def test_the_check_sees_a_breach(path: str, source: str) -> None:
    assert violations(path, source)


def drawing() -> Any:
    """`docs/architecture.py` as a module."""
    path = PACKAGE.parent / "docs" / "architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_the_imports_as_they_are() -> None:
    drawn = drawing()
    graph = drawn.boxes(PACKAGE)
    assert {"callback", "session", "core/watcher", "core/alerts"} <= set(graph)
    assert "core/watcher" not in graph["core/probe"]
    assert drawn.PICTURE.read_text() == drawn.draw(graph), "run `python docs/architecture.py`"


def test_imports_that_run_in_a_circle_are_seen() -> None:
    with pytest.raises(ValueError, match="in a circle: a -> b -> a"):
        drawing().levels({"a": {"b"}, "b": {"a"}})


def test_private_names_of_the_trainer_stay_in_one_file() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_lightning.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                    assert "trainer" not in ast.unparse(node.value), f"{path.name}: {ast.unparse(node)}"


def test_tag_strings_stay_in_metrics() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "metrics.py":
            texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert not [t for t in texts if isinstance(t, str) and t.startswith(("gradwatch/", "grad_norm/"))], path


@pytest.mark.parametrize(
    ("statement", "stays_out"),
    [
        ("import lightning_gradwatch", ("torch", "lightning", "pytorch_lightning", "tensorboard")),
        ("from lightning_gradwatch import Alert, Prescription", ("torch", "lightning", "pytorch_lightning")),
        ("from lightning_gradwatch import GradWatch", ("lightning", "pytorch_lightning")),
        ("from lightning_gradwatch import prescribe", ("lightning", "pytorch_lightning", "tensorboard")),
        ("import lightning_gradwatch.core.quantities.own", ("torch", "numpy", "lightning", "tensorboard")),
        ("import lightning_gradwatch.core.watcher", ("lightning", "pytorch_lightning", "tensorboard")),
        ("import lightning_gradwatch.core.alerts", ("torch", "lightning", "pytorch_lightning", "tensorboard", "numpy")),
        ("import lightning_gradwatch.session", ("lightning", "pytorch_lightning", "lightning_utilities")),
        ("from lightning_gradwatch import watch", ("lightning", "pytorch_lightning", "lightning_utilities")),
        ("import lightning_gradwatch.tensorboard.loader", ("torch", "lightning", "pytorch_lightning", "numpy")),
        ("import lightning_gradwatch.tensorboard.plugin", ("torch", "lightning", "pytorch_lightning")),
        (
            "import lightning_gradwatch.cli.main",
            ("torch", "lightning", "pytorch_lightning", "tensorboard", "rich", "numpy"),
        ),
        ("import lightning_gradwatch.cli.watching", ("torch", "lightning", "pytorch_lightning")),
        ("import lightning_gradwatch.cli.page", ("torch", "lightning", "pytorch_lightning", "rich")),
    ],
)
def test_imports_stay_light(statement: str, stays_out: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([m for m in {stays_out!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.slow
def test_the_import_check_can_fail() -> None:
    code = "from lightning_gradwatch import GradWatch; import sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def for_type_checkers() -> Iterator[str]:
    """The names that the package declares to type checkers alone."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    yield from (alias.asname or f"{alias.name}, which is not exported" for alias in statement.names)
                else:
                    assert isinstance(statement, ast.AnnAssign)
                    yield ast.unparse(statement.target)


def test_public_names_are_the_announced_ones() -> None:
    policies = {policy.__name__ for policy in POLICIES}
    others = {"Alert", "GradWatch", "GradWatchWarning", "GradientAlertError", "Prescription", "prescribe", "watch"}
    others |= {"Birth", "Headroom", "find_birth", "lr_headroom"}
    assert lightning_gradwatch.__all__ == sorted(policies | others)
    assert set(for_type_checkers()) == policies | others | {"__version__"}
    assert all(hasattr(lightning_gradwatch, name) for name in lightning_gradwatch.__all__)
    assert set(lightning_gradwatch.__all__) <= set(dir(lightning_gradwatch))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = lightning_gradwatch.Nonsense
