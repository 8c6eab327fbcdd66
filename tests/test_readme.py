"""The README keeps its word, and stays short: the rest is in docs.

Its snippets are executed by ``test_guide``; ``.ci/readme.py`` follows all of it, as a stranger would.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from lightning_gradwatch import GradWatch
from tests.test_guide import anchors

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)", README) if "://" not in link]
    assert len(links) > 10
    assert len([link for link in links if link.startswith("docs/")]) > 10
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
    for link in links:
        page, _, anchor = link.partition("#")
        assert not anchor or anchor in anchors((ROOT / page).read_text()), link


def test_every_argument_is_told_on_its_page() -> None:
    arguments = list(inspect.signature(GradWatch).parameters)
    assert len(arguments) > 10
    table = (ROOT / "docs" / "arguments.md").read_text()
    assert [name for name in arguments if f"`{name}`" not in table] == []


def test_a_stranger_need_not_read_long() -> None:
    assert len(README.splitlines()) <= 130


def test_there_are_two_commands_that_set_everything_up() -> None:
    commands = re.findall(r"^python3 -m venv .+$", README, re.MULTILINE)
    ends = [command.rpartition(" && ")[2] for command in commands]
    assert ends == ["python examples/quickstart.py", "pytest -n auto"]
    assert all(" && . .venv/bin/activate && pip install -c constraints.txt " in command for command in commands)
