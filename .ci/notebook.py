"""Executes a notebook cell by cell in IPython's own shell, as Jupyter's kernel does, but without a server or sockets.

python .ci/notebook.py NOTEBOOK.ipynb EXECUTED.ipynb

It runs in the present directory, and ends with 1 at the first cell that fails. EXECUTED.ipynb gets the outputs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

Output = dict[str, Any]


def execute(shell: InteractiveShell, source: str) -> tuple[list[Output], bool]:
    """The outputs of a cell, and whether it went well."""
    with capture_output() as captured:
        ran = shell.run_cell(source, store_history=True)
    outputs: list[Output] = []
    for name, text in (("stdout", captured.stdout), ("stderr", captured.stderr)):
        if text:
            outputs.append({"output_type": "stream", "name": name, "text": text})
    outputs += [{"output_type": "display_data", "data": shown.data, "metadata": {}} for shown in captured.outputs]
    if ran.result is not None:
        data, metadata = shell.display_formatter.format(ran.result)
        number = shell.execution_count - 1
        outputs.append({"output_type": "execute_result", "data": data, "metadata": metadata, "execution_count": number})
    return outputs, bool(ran.success)


def main(path: Path, target: Path) -> int:
    """Execute all cells; 1 if one fails."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shell = InteractiveShell()
    # results are outputs of their own here, and not printed as in a terminal
    shell.displayhook.write_output_prompt = lambda: None
    shell.displayhook.write_format_data = lambda *_: None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            cell["outputs"], is_well = execute(shell, source)
            if not is_well:
                told = "".join(output.get("text", "") for output in cell["outputs"])
                print(f"This cell of {path.name} fails:\n\n{source}\n\n{told}", file=sys.stderr)
                return 1
    target.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
