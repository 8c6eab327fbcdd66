"""The scripts of the tab and of the page: small modules, each of which is needed. Their types are checked by CI."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_gradwatch.reading import tables

PACKAGE = Path(tables.__file__).parents[1]
STATIC, PAGE = PACKAGE / "tensorboard" / "static", PACKAGE / "cli" / "page"
SCRIPTS = [*STATIC.glob("*.js"), *PAGE.glob("*.js")]
ENTRIES = STATIC / "index.js", PAGE / "report.js"
LONGEST_LINE, LONGEST_FUNCTION, LONGEST_FILE = 120, 100, 220


def imports_of(script: Path) -> set[Path]:
    """The modules that a script imports, but for the third party's."""
    source = script.read_text(encoding="utf-8")
    found = re.findall(r'^import .*?"(\.[^"]+)";', source, re.DOTALL | re.MULTILINE)
    found += re.findall(r'\bimport\("(\.[^"]+)"\)', source)
    return {(script.parent / name).resolve() for name in found if "/vendor/" not in name}


def test_every_script_is_needed() -> None:
    needed, rest = set(), [entry.resolve() for entry in ENTRIES]
    while rest:
        script = rest.pop()
        needed.add(script)
        rest += imports_of(script) - needed
    assert needed == {script.resolve() for script in SCRIPTS}


def test_scripts_are_small() -> None:
    for script in [*SCRIPTS, *STATIC.glob("*.d.ts")]:
        source = script.read_text(encoding="utf-8")
        assert max(map(len, source.splitlines())) <= LONGEST_LINE, script.name
        if script.suffix == ".js":
            assert len(source.splitlines()) <= LONGEST_FILE, script.name
        for function in re.finditer(r"^(?:export )?(?:async )?function (\w+).*?^\}", source, re.DOTALL | re.MULTILINE):
            assert function[0].count("\n") < LONGEST_FUNCTION, (script.name, function[1])


def test_comments_that_begin_a_line_are_all_that_the_wheel_leaves_out() -> None:
    """What looks like a comment must not stand in a text, since it is cut out by a regular expression."""
    for script in SCRIPTS:
        for text in re.findall(
            r"`[^`]*`", re.sub(r"/\*.*?\*/", "", script.read_text(encoding="utf-8"), flags=re.DOTALL)
        ):
            assert "/*" not in text, script.name
