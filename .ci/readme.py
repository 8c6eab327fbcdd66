"""Follow README.md as a stranger would: every command and snippet, word for word, in an empty directory.

python3 .ci/readme.py DIRECTORY WHEELS

DIRECTORY is made, and everything happens below it. `pip install lightning-gradwatch` takes the wheel in WHEELS, and
`git clone` of the project's address takes the clone that this file is in; nothing else is different. What is installed
is held to constraints.txt.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRELUDE = r"""
set -euo pipefail
python3 -m venv stranger && . stranger/bin/activate

tensorboard() {  # look whether the tab knows the runs, then end it
  command tensorboard "$@" --port 16123 > /dev/null 2>&1 & local server=$! found=no
  for _ in $(seq 60); do
    if python - <<'PYTHON'
import json, sys, urllib.request
with urllib.request.urlopen("http://localhost:16123/data/plugin/gradwatch/runs", timeout=5) as answer:
    sys.exit(not json.load(answer)["runs"])
PYTHON
    then found=yes; break; fi 2> /dev/null
    sleep 1
  done
  kill "$server"
  [ "$found" = yes ]
}

gradwatch() {  # its status is 1 where an alert is open
  command gradwatch "$@" || [ $? -eq 1 ]
}
"""


def script(readme: str) -> str:
    """The blocks of a README as one script for bash, each announced by its first line."""
    parts = [PRELUDE]
    for language, text in FENCE.findall(readme):
        first = text.strip().splitlines()[0].replace("'", "")
        parts.append(f"printf '\\n--- README: %s\\n' '{first}'")
        parts.append(text if language == "bash" else f"python - <<'SNIPPET'\n{text}SNIPPET\n")
    return "\n".join(parts)


def main(directory: Path, wheels: Path) -> int:
    """Run it; the exit status is that of the first command that fails."""
    directory.mkdir(parents=True)
    readme = (ROOT / "README.md").read_text()
    home = re.search(r"git clone (\S+)", readme)
    assert home is not None, "README.md tells nobody what to clone"
    stands_for = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": home[1],
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
        "PIP_FIND_LINKS": str(wheels.resolve()),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = ["bash", "-c", script(readme)]
    return subprocess.run(command, cwd=directory, env={**os.environ, **stands_for}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
