"""Where the code of others comes from: nothing malicious, nothing unnamed, nothing that can change under its name."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *WORKFLOWS, ROOT / ".ci/run"]

MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""GHSA-w37p-236h-pfx3."""


def declared(*extras: str) -> list[str]:
    """Requirements of the package and of some of its extras, with those that they take in."""
    found = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra]):
            own = requirement.name == PROJECT["project"]["name"]
            found += declared(*requirement.extras) if own else [str(requirement)]
    return found


def matrix(workflow: Any) -> Iterator[dict[str, str]]:
    """Every version of Lightning that a job of a workflow asks for by its matrix."""
    for job in workflow["jobs"].values():
        yield from ({"lightning": v} for v in job.get("strategy", {}).get("matrix", {}).get("lightning", ()))


def installed_by(text: str, versions: list[dict[str, str]]) -> Iterator[str]:
    """Requirements on the command lines of pip, wherever they stand in a text."""
    for command in re.findall(r"pip install ([^\n`]*)", text):
        for values in versions or [{}]:
            filled = re.sub(r"\$\{\{ *matrix\.(\w+) *\}\}", lambda m, v=values: v.get(m[1], ""), command)  # type: ignore[misc]
            if "newest" not in filled:  # whose version is that of the constraints
                yield from shlex.split(filled, posix=True)


def asked_for() -> Iterator[tuple[str, str]]:
    """Where a requirement stands, and the requirement."""
    for requirement in [*declared(*PROJECT["project"]["optional-dependencies"]), *PROJECT["build-system"]["requires"]]:
        yield "pyproject.toml", requirement
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        yield "constraints.txt", line
    for path in DOCUMENTS:
        text = path.read_text()
        versions = list(matrix(yaml.safe_load(text))) if path in WORKFLOWS else []
        for requirement in installed_by(text, versions):
            yield path.name, requirement
        for mention in re.findall(r"`((?:pytorch-)?lightning *[<>=!~]=?[^`]*)`", text):
            yield path.name, mention


def malicious(requirement: str) -> list[str]:
    """Releases that a requirement would allow and nobody must have."""
    try:
        asked = Requirement(requirement)
    except InvalidRequirement:  # a comment, an option or a path
        return []
    return [v for v in MALICIOUS.get(canonicalize_name(asked.name), ()) if asked.specifier.contains(v)]


def test_no_requirement_allows_a_malicious_release() -> None:
    requirements = list(asked_for())
    of_lightning = [where for where, text in requirements if re.match(r"(pytorch-)?lightning *[=<>!~]", text)]
    assert {"pyproject.toml", "constraints.txt", "ci.yml"} <= set(of_lightning)
    assert [(where, text) for where, text in requirements if malicious(text)] == []


@pytest.mark.parametrize(
    "requirement", ["lightning", "lightning>=2.4", "pytorch_lightning ==2.6.3", "lightning!=2.6.2"]
)
def test_the_check_sees_one_that_does(requirement: str) -> None:
    assert malicious(requirement)
    assert malicious(next(installed_by(f"run: pip install '{requirement}'", [])))


ROOMS: dict[str, tuple[str, ...]] = {
    "lightning_gradwatch/outputs/loggers": ("loggers",),
    "tests/outputs/loggers/packages": ("loggers",),
    "lightning_gradwatch": (),
    "lightning_gradwatch/cli": ("report",),
    "lightning_gradwatch/notebook": ("notebooks",),
    "lightning_gradwatch/outputs/notify.py": ("notify",),
    "tests": ("test",),
    "tests/setups/deepspeed": ("deepspeed",),
    "docs": ("benchmarks", "docs", "test"),
    "examples": ("examples",),
    "examples/gallery": ("gallery",),
    "benchmarks": ("benchmarks", "peers", "test"),
    ".ci": (),
    ".ci/notebook.py": ("notebooks",),
}
"""The extras with which what lies in a folder can be imported."""
ONLY_WHERE_INSTALLED = {
    ("lightning_gradwatch/outputs/notify.py", "jsonargparse"),  # only where somebody else has imported it
    ("lightning_gradwatch/trials/prescribe.py", "tqdm"),  # no progress bar without it
}


def imports_of(node: ast.AST) -> Iterator[str]:
    """Top-level packages that are imported at run time, anywhere in a source."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for other in node.orelse:
            yield from imports_of(other)
        return
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.split(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from imports_of(child)


def undeclared(path: str, source: str, distributions: dict[str, list[str]]) -> set[str]:
    """What a file imports and nothing installs."""
    room = max((room for room in ROOMS if f"{path}/".startswith(f"{room}/")), key=len)
    known = {canonicalize_name(Requirement(text).name) for text in declared(*ROOMS[room])}
    found = {name for name in imports_of(ast.parse(source)) if name not in sys.stdlib_module_names}
    ours = {p.stem for folder in (ROOT, (ROOT / path).parent, ROOT / "examples/gallery") for p in folder.iterdir()}
    return {
        name
        for name in found - ours
        if (path, name) not in ONLY_WHERE_INSTALLED
        and not known & {canonicalize_name(n) for n in distributions.get(name, [name])}
    }


def test_everything_that_is_imported_is_declared() -> None:
    distributions = dict(packages_distributions())
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    found = {
        str(p.relative_to(ROOT)): undeclared(str(p.relative_to(ROOT)), p.read_text(), distributions) for p in files
    }
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lightning_gradwatch/core/measure.py", "def f():\n    import scipy.stats"),
        ("lightning_gradwatch/outputs/sinks.py", "import rich"),
        ("lightning_gradwatch/outputs/sinks.py", "if TYPE_CHECKING:\n    import torch\nelse:\n    import apprise"),
        ("tests/tasks.py", "from PIL import Image"),
    ],
)
def test_the_check_sees_what_nothing_installs(path: str, source: str) -> None:
    assert undeclared(path, source, dict(packages_distributions()))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit_and_named_by_their_version(path: Path) -> None:
    used = re.findall(r"^ *(?:- )?uses: *(.*)$", path.read_text(), re.MULTILINE)
    assert used
    assert [
        action for action in used if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
    ] == []
