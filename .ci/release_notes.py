"""Print the section of a version in CHANGELOG.md, for the page of its release.

python3 .ci/release_notes.py 1.2.3
"""

from __future__ import annotations

import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def section(changelog: str, version: str) -> str:
    """What stands below the heading of a version.

    Raises:
        ValueError: If there is no such heading, or nothing below it.
    """
    _, found, rest = changelog.partition(f"\n## [{version}]")
    notes = rest.partition("\n")[2].partition("\n## ")[0].strip()
    if not found or not notes:
        raise ValueError(
            f"CHANGELOG.md says nothing about {version}: move what is unreleased below `## [{version}] - date`"
        )
    return notes


if __name__ == "__main__":
    try:
        print(section(CHANGELOG.read_text(encoding="utf-8"), sys.argv[1].removeprefix("v")))
    except ValueError as failure:
        sys.exit(str(failure))
