"""The command itself: what it needs, what it does without, and what shells ask of it."""

from __future__ import annotations

import ast
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lightning_gradwatch
from lightning_gradwatch.cli import versions
from tests.cli.command import COMMAND, environment, gradwatch, here

COMMANDS = ("report", "watch", "alerts", "snapshot", "replay", "versions")
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from lightning_gradwatch.cli.main import main
status = main({arguments!r})
assert not {names!r} & set(sys.modules), {names!r} & set(sys.modules)
sys.exit(status)
"""


def without(names: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it in a process in which some packages cannot be imported."""
    script = BLOCK.format(names=names, arguments=[str(argument) for argument in arguments])
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )


def test_neither_torch_nor_lightning_is_needed(logs: Path, tmp_path: Path) -> None:
    names = {"torch", "lightning", "pytorch_lightning", "tensorflow", "torchmetrics"}
    page = tmp_path / "page.html"
    snapshot = ["snapshot", logs, "--run", "sick"]
    for arguments in (
        ["report", logs],
        ["report", logs, "--json", "--html", page],
        ["alerts", logs],
        snapshot,
        ["--help"],
    ):
        found = without(names, *arguments)
        assert found.returncode == (0 if arguments == ["--help"] else 1), found.stderr
    watched = without(names, "watch", logs / "sick", "--every", "0.1", "--until-alert")
    assert watched.returncode == 1, watched.stderr
    assert page.stat().st_size > 100_000


def test_the_block_of_imports_can_fail(logs: Path) -> None:
    assert "No module named 'numpy'" in without({"numpy"}, "report", logs).stderr


@pytest.mark.parametrize("arguments", [["report"], ["watch", "--until-alert"]])
def test_without_rich_it_says_in_a_sentence_how_to_get_it(logs: Path, arguments: list[str]) -> None:
    found = without({"rich"}, *arguments, logs / "sick")
    assert found.returncode == 2
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1
    assert "pip install 'lightning-gradwatch[report]'" in found.stderr


def test_json_and_page_need_no_rich(logs: Path, tmp_path: Path) -> None:
    found = without({"rich", "shtab"}, "report", logs / "sick", "--json", "--html", tmp_path / "page.html")
    assert found.returncode == 1, found.stderr
    assert json.loads(found.stdout)["exit_status"] == 1


@pytest.mark.parametrize("command", ["alerts", "snapshot"])
def test_plain_text_needs_no_rich(logs: Path, command: str) -> None:
    found = without({"rich", "shtab"}, command, logs / "sick")
    assert found.returncode == 1, found.stderr
    assert "net.0" in found.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_completion_names_commands_and_options(shell: str) -> None:
    found = gradwatch("--print-completion", shell)
    assert found.returncode == 0, found.stderr
    assert all(word in found.stdout for word in COMMANDS)
    assert all(word in found.stdout for word in ("until-alert", "html", "since", "step"))
    if shutil.which(shell):
        flag = "-n"
        assert subprocess.run([shell, flag], input=found.stdout, text=True, check=False).returncode == 0


def test_bash_completes_commands_options_and_directories(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning.txt").touch()
    script = (
        gradwatch("--print-completion", "bash").stdout
        + """
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
    $(complete -p gradwatch | sed 's/.*-F \\([^ ]*\\).*/\\1/') gradwatch "${@: -1}" "${@: -2:1}"
    echo "${COMPREPLY[@]}"
}
complete_words gradwatch repo
complete_words gradwatch report --js
complete_words gradwatch report light
"""
    )
    found = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert [line.strip() for line in found.stdout.splitlines()] == ["report", "--json", "lightning_logs"], found


def test_without_the_package_for_completion_it_says_how_to_get_it() -> None:
    found = without({"shtab"}, "--print-completion", "bash")
    assert found.returncode == 2
    assert "pip install 'lightning-gradwatch[report]'" in found.stderr


def test_a_reader_that_has_read_enough_ends_it_quietly(logs: Path) -> None:
    command = " ".join([*COMMAND, "report", str(logs), "--json"])
    found = subprocess.run(
        ["bash", "-c", f"{command} | head -c 10"], capture_output=True, text=True, env=environment(), check=False
    )
    assert (len(found.stdout), found.stderr) == (10, "")


def test_version_and_help_are_there() -> None:
    assert gradwatch("--version").stdout.split() == ["lightning-gradwatch", lightning_gradwatch.__version__]
    assert set(COMMANDS) <= set(
        gradwatch("--help").stdout.replace(",", " ").replace("{", " ").replace("}", " ").split()
    )
    for command in COMMANDS[:-1]:
        assert "Exit status" in gradwatch(command, "--help").stdout


def test_versions_are_told_for_a_bug_report_and_nothing_of_it_is_imported() -> None:
    found = without({"torch", "lightning", "pytorch_lightning", "tensorboard", "numpy", "rich"}, "versions")
    assert found.returncode == 0, found.stderr
    told = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    for name in ("lightning-gradwatch", "torch", "lightning", "pytorch-lightning", "tensorboard"):
        assert told[name] == version(name)
    assert told["Python"].startswith(platform.python_version())
    assert "platform" in told


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert here(capsys, "versions")[1].splitlines()[1].split(maxsplit=1) == [
        "no-such-package-anywhere",
        "not installed",
    ]


@pytest.mark.parametrize("arguments", [[], ["report"], ["look", "x"], ["watch", "x", "--every", "0"]])
def test_wrong_arguments_are_refused_with_two(arguments: list[str]) -> None:
    found = gradwatch(*arguments)
    assert found.returncode == 2
    assert "gradwatch" in found.stderr
    assert "Traceback" not in found.stderr


def test_arguments_and_data_are_told_without_drawing() -> None:
    """What needs rich is apart from what does not."""
    needs_rich = {"terminal", "born", "drawing", "glyphs", "watching", "recurrence", "selection", "lost"}
    for path in Path(lightning_gradwatch.__file__).parent.joinpath("cli").rglob("*.py"):
        top = ast.parse(path.read_text()).body
        imported = {n.module.split(".")[0] for n in top if isinstance(n, ast.ImportFrom) and n.module}
        assert ("rich" in imported) == (path.stem in needs_rich), path
