"""The limits of the house: each is held, has its exceptions, and no exception outlives its reason."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "house"


@pytest.fixture(scope="module")
def house() -> Any:
    """The script as a module."""
    loader = SourceFileLoader("house", str(SCRIPT))
    spec = importlib.util.spec_from_loader("house", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def functions(prefix: str, number: int) -> str:
    return "".join(f"    def {prefix}{i}(self): ...\n" for i in range(number))


def assignments(prefix: str, number: int) -> str:
    return "    def __init__(self):\n" + "".join(f"        self.{prefix}{i} = {i}\n" for i in range(number))


BRANCHES = """
def judge(x):
    if x: ...
    elif x: ...
    for y in x:
        while y: ...
    try: ...
    except KeyError: ...
    match x:
        case 1: ...
        case _: ...
    z = 1 if x else [y for y in x if y if x]
"""
"""Ten of them: one of each kind, two cases, and two conditions."""
GOOD = {
    "lines": "x = 1\n" * 400,
    "methods": f"class Large:\n{functions('_do_', 20)}",
    "hooks": f"class Large:\n{functions('_do_', 20)}{functions('on_step_', 9)}    def setup(self): ...\n",
    "public": f"class Public:\n{functions('_do_', 20)}{functions('do_', 9)}",
    "attributes": f"class Large:\n{assignments('x', 20)}",
    "the same twice": f"class Large:\n    x0: int = 0\n{assignments('x', 20)}    def f(self):\n        self.x1 = 0\n",
    "public attributes": f"class Public:\n{assignments('x', 30)}",
    "branches": BRANCHES,
    "branches of two": BRANCHES + "    def inner():\n        if x: ...\n",
    "explained": BRANCHES.replace("    for", "    # The second step.\n    for") + "    # Then\n    if x: ...\n",
    "any": "x = 1\n" * 200 + "def f(a: Any) -> None: ...\nb: Any = 1\n",
}
BAD = {
    "401 lines": "x = 1\n" * 401,
    "21 methods": f"class Large:\n{functions('_do_', 21)}",
    "22 methods": f"class Public:\n    def __init__(self): ...\n{functions('_do_', 21)}",
    "21 attributes": f"class Large:\n{assignments('x', 21)}",
    "23 attributes": "class Large:\n" + "".join(f"    x{i}: int\n" for i in range(23)),
    "24 attributes": f"class Public:\n{assignments('_x', 24)}",
    "25 attributes": f"class Large:\n    def f(self):\n        {' = '.join(f'self.x{i}' for i in range(25))} = 0\n",
    "11 branches": BRANCHES + "    if x: ...\n",
    "12 branches": "class Some:\n" + indent(BRANCHES + "    if x: ...\n" * 2, "    "),
    "13 branches": BRANCHES + "    # One comment alone\n    # in two lines.\n" + "    if x: ...\n" * 3,
    "15 any": "x = 1\n" * 200 + "def f(a: Any, *b: Any) -> Any: ...\n",
}


def tree(directory: Path, source: str) -> Path:
    """A package of one module with a class that it exports and others that it does not."""
    package = directory / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from package.inner.module import Public\nfrom typing import Large\n")
    (package / "inner" / "module.py").write_text(source)
    return package


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD)
def test_what_is_within_the_limits_passes(tmp_path: Path, source: str) -> None:
    done = run(str(tree(tmp_path, source)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "at most" not in done.stdout
    assert "lines of Python" in done.stdout


@pytest.mark.parametrize(("words", "source"), BAD.items(), ids=BAD)
def test_what_is_over_a_limit_fails_and_is_named(tmp_path: Path, words: str, source: str) -> None:
    done = run(str(tree(tmp_path, source)))
    assert (done.returncode, done.stderr) == (1, "")
    (complaint,) = [line for line in done.stdout.splitlines() if "at most" in line]
    assert f": {words}, at most " in complaint
    assert complaint.startswith("the package" if "any" in words else "inner/module.py")


@pytest.mark.parametrize(
    ("permitted", "complaint"),
    [
        (24, []),
        (23, ["inner/module.py:Large: 24 methods, at most 23"]),
        (25, ["inner/module.py:Large: 24 methods are fewer than the 25 allowed: lower the figure in ALLOWED"]),
    ],
)
def test_an_exception_can_only_shrink(house: Any, tmp_path: Path, permitted: int, complaint: list[str]) -> None:
    found = list(house.figures(tree(tmp_path, f"class Large:\n{functions('_do_', 24)}")))
    assert list(house.complaints(found, {("methods", "inner/module.py:Large"): permitted})) == complaint


@pytest.mark.parametrize("source", [f"class Large:\n{functions('_do_', 20)}", "class Other: ...\n"])
def test_an_exception_that_is_not_needed_leaves(house: Any, tmp_path: Path, source: str) -> None:
    found = list(house.figures(tree(tmp_path, source)))
    (complaint,) = house.complaints(found, {("methods", "inner/module.py:Large"): 24})
    assert "take it out of ALLOWED" in complaint


def test_every_exception_is_over_its_limit(house: Any) -> None:
    assert all(number > house.LIMITS[kind] for (kind, _), number in house.ALLOWED.items())


def test_the_table_shows_the_worst_first(house: Any, tmp_path: Path) -> None:
    package = tree(tmp_path, "x = 1\n" * 390)
    (package / "longer.py").write_text("x = 1\n" * 395)
    shown = [line.split() for line in house.table(list(house.figures(package))) if line.startswith("lines")]
    assert [(row[1], row[-1]) for row in shown] == [
        ("395", "longer.py"),
        ("390", "inner/module.py"),
        ("2", "__init__.py"),
    ]
