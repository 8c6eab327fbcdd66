"""The README keeps its word."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_training_setup_that_is_tested_is_named() -> None:
    tests = sorted((ROOT / "tests" / "setups").glob("test_*.py"))
    assert len(tests) > 5
    assert [test.name for test in tests if f"(tests/setups/{test.name})" not in README] == []
