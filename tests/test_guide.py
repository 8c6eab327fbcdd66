"""The pages of docs keep their word: every block of code is executed, and what it prints compared with the next block.

So are the README's snippets; its commands install things, and are executed by ``.ci/readme.py``. A command that
installs something stands on a page only if it stands in the README, too.

A section (a heading with what is below it, up to the next heading) runs in a directory of its own, its Python blocks in
one namespace with the file of the first page, ``setting.py``. A block whose first line names a file is that file, for
the commands of the section to use.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lightning_gradwatch import GradWatchWarning
from tests.cli.command import environment
from tests.servers import Inbox
from tests.tensorboard.board import Board

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
README = (ROOT / "README.md").read_text()
SLACK = "slack://TokenA/TokenB/TokenC/#training"
"""The address of a server of our own stands in for it."""
LOGDIR = re.compile(r"^tensorboard --logdir (\S+)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        named = re.match(r"# (\w+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None


def sections(document: str) -> dict[str, list[Block]]:
    """The blocks below each heading that has any; no two headings may be the same."""
    found: dict[str, list[Block]] = {}
    code = False
    title, start, lines = "", 0, document.splitlines(keepends=True)
    for number, line in enumerate([*lines, "# end\n"]):
        code ^= line.startswith("```")
        if line.startswith("#") and not code:
            assert title not in found, title
            found[title] = [Block(*match.groups()) for match in FENCE.finditer("".join(lines[start:number]))]
            title, start = line.strip("# \n"), number
    return {title: blocks for title, blocks in found.items() if blocks}


SNIPPETS = [block for blocks in sections(README).values() for block in blocks if block.language == "python"]
SECTIONS = {(page, title): blocks for page, text in PAGES.items() for title, blocks in sections(text).items()}
SECTIONS["README.md", ""] = SNIPPETS
OF_THE_README = [block for blocks in sections(README).values() for block in blocks if block.language == "bash"]
LONG = re.compile(r"\bpython [\w/]+\.py\b|\btorchrun |\bprescribe\b")
"""What takes long: commands that have to import torch and Lightning again, and trials of remedies."""


def is_slow(blocks: list[Block]) -> bool:
    """Whether a section takes long."""
    return any(block.language != "text" and LONG.search(block.text) for block in blocks)


def marks(blocks: list[Block]) -> list[pytest.MarkDecorator]:
    """How a section is to be run: not at all without a package that it shows and that nothing else of us needs."""
    lacks = any("import optuna" in block.text for block in blocks) and not importlib.util.find_spec("optuna")
    return [pytest.mark.slow] * is_slow(blocks) + [pytest.mark.skip("needs optuna")] * lacks


TITLES = [pytest.param(*where, marks=marks(blocks)) for where, blocks in SECTIONS.items()]
(SETTING,) = (block.text for block in SECTIONS["start.md", "The network of the examples"])


class Reader:
    """Does what somebody would who follows a section.

    Args:
        directory: Where they work.
        slack: The address that stands in for Slack's.
    """

    def __init__(self, directory: Path, slack: str) -> None:
        self.directory, self.slack = directory, slack
        self.told, self.was_command = "", False
        self.names: dict[str, Any] = {"__name__": "__guide__"}
        (directory / "setting.py").write_text(SETTING)
        exec(compile(SETTING, "setting.py", "exec"), self.names)

    def follow(self, blocks: list[Block]) -> None:
        """One block after the other."""
        for block in blocks:
            if block.file:
                (self.directory / block.file).write_text(block.text)
            elif block.language == "python":
                self.execute(block.text)
            elif block.language == "bash" and block.text.startswith("pip install "):
                assert block in OF_THE_README, block
            elif block.language == "bash":
                self.command(block.text)
            else:
                assert block.language == "text", block
                self.compare(block.text)

    def compare(self, text: str) -> None:
        """Each line must have been said since the last such block: as a line by Python, within one by a command."""
        lines = self.told.splitlines()
        said = self.told if self.was_command else {line.strip() for line in lines}
        assert [line for line in text.splitlines() if line.strip() not in said] == [], lines
        self.told = ""

    def execute(self, code: str) -> None:
        """Run Python here."""
        with redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "GradWatch, ", GradWatchWarning)  # its alerts
            exec(compile(code, "page.md", "exec"), self.names)
        self.told, self.was_command = self.told + out.getvalue(), False

    def command(self, text: str) -> None:
        """Run commands as a shell does; a TensorBoard is started, asked for the tab, and ended."""
        for logdir in LOGDIR.findall(text):
            with Board(self.directory / logdir) as board:
                is_empty = not list((self.directory / logdir).rglob("events.out.tfevents.*"))
                board.wait(lambda board=board, is_empty=is_empty: board.get("runs").json["runs"] or is_empty)
        variables = environment(OMP_NUM_THREADS="1", MPLBACKEND="agg")
        variables["PYTHONPATH"] = os.pathsep.join([str(self.directory), variables["PYTHONPATH"]])
        commands = LOGDIR.sub("", text).replace(SLACK, self.slack)
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.directory,
            env=variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        tells_by_status = commands.startswith("gradwatch report") and ran.returncode == 1  # an alert is open
        assert ran.returncode == 0 or tells_by_status, ran.stdout + ran.stderr
        self.told, self.was_command = self.told + ran.stdout, True


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place to work in, beside what the repository offers, with the commands of this environment."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "title"), TITLES)
def test_a_section_does_what_it_says(page: str, title: str, directory: Path) -> None:
    with Inbox() as inbox:
        reader = Reader(directory, inbox.address())
        reader.follow(SECTIONS[page, title])
    is_promised = any(SLACK in block.text for block in SECTIONS[page, title])
    assert bool(inbox.messages) == is_promised


def test_a_wrong_word_is_found(directory: Path) -> None:
    reader = Reader(directory, "")
    reader.follow([Block("python", "print(6 * 7)"), Block("text", "42\n")])
    with pytest.raises(AssertionError):
        reader.follow([Block("text", "43\n")])
    with pytest.raises(AssertionError):
        reader.follow([Block("bash", "false\n")])


def anchors(page: str) -> set[str]:
    """What a link to a part of a page may name."""
    return {re.sub(r"[^\w\- ]", "", line.strip("# ")).lower().replace(" ", "-") for line in page.splitlines()}


def links(text: str) -> list[str]:
    """Where the links and pictures of a page lead, outside of its code; without other hosts."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)) if "://" not in link]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_and_picture_of_a_page_leads_somewhere(name: str) -> None:
    broken = []
    for link in links(PAGES[name]):
        path, _, anchor = link.partition("#")
        target = (DOCS / name).parent / path if path else DOCS / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_the_pages_are_there_and_link_to_each_other() -> None:
    assert len(PAGES) > 50
    assert sum(len(links(text)) for text in PAGES.values()) > 300


def test_a_broken_link_is_seen() -> None:
    assert links("[a](b.md#c)\n```python\nd[0](e)\n```\n![f](g.png) [h](https://i.example)") == ["b.md#c", "g.png"]
    assert "when-it-opens" in anchors(PAGES["alerts/dead.md"])
    assert "nonsense" not in anchors(PAGES["alerts/dead.md"])


def test_the_pictures_are_small_and_all_shown() -> None:
    pictures = sorted((DOCS / "pictures").glob("*.png"))
    assert [picture.name for picture in pictures if picture.stat().st_size > 65_000] == []
    shown = {Path(link).name for text in PAGES.values() for link in links(text)}
    in_light = {picture.name: picture.name.replace("_dark.", "_light.") for picture in pictures}
    assert [name for name, light in in_light.items() if light not in shown] == []
    dark = [name.replace("_light.", "_dark.") for name in in_light if "_light." in name]
    assert len(dark) > 10
    assert set(dark) <= set(in_light)


def test_every_network_of_the_gallery_is_in_the_table() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "examples" / "gallery").glob("*.py"))
    networks = re.findall(r'Network\(\s*"([^"]+)"', scripts)
    assert len(networks) > 30
    assert [name for name in networks if f"| {name} |" not in PAGES["gallery.md"]] == []


def test_every_training_setup_that_is_tested_is_named() -> None:
    tests = sorted((ROOT / "tests" / "setups").glob("test_*.py"))
    assert len(tests) > 5
    assert [test.name for test in tests if f"(../tests/setups/{test.name})" not in PAGES["setups.md"]] == []
