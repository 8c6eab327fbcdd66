"""What the wheel leaves out of the scripts: their comments, a quarter of what a browser would load."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMENT = re.compile(r"^[ \t]*/\*\*.*?\*/\n", re.DOTALL | re.MULTILINE)
"""A comment that begins a line; those are all that the scripts have, but for types within a line."""


class WithoutComments(BuildHookInterface):
    """Puts the scripts into the wheel without comments; the third party's stay as they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is built."""
        if version == "editable":
            return
        self._work = tempfile.TemporaryDirectory()
        root, work = Path(self.root), Path(self._work.name)
        for script in root.glob("lightning_gradwatch/**/*.js"):
            if "vendor" not in script.parts:
                name = script.relative_to(root)
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_text(COMMENT.sub("", script.read_text(encoding="utf-8")), encoding="utf-8")
                build_data["force_include"][str(work / name)] = name.as_posix()
