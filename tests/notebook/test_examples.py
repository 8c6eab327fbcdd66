"""The notebooks in examples/, executed, and what they show looked at in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("IPython", reason="needs the extra `notebooks`")

from tests.tensorboard.browser import chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
ELSEWHERE = {"with_wandb"}
"""Executed by the tests of the loggers' own packages."""
COLAB = "https://colab.research.google.com/github/lightning-gradwatch/lightning-gradwatch/blob/main/examples"
POLICY_OF_VS_CODE = (
    "default-src 'none'; script-src https://*.vscode-cdn.net 'unsafe-inline' 'unsafe-eval'; "
    "style-src https://*.vscode-cdn.net 'unsafe-inline'; img-src https: http: data:; connect-src https:; "
    "child-src https: data:"
)


@pytest.fixture(scope="module", params=[path.stem for path in NOTEBOOKS if path.stem not in ELSEWHERE])
def executed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any], Path]:
    """The name of a notebook, its code cells with their outputs, and the directory in which it ran."""
    directory = tmp_path_factory.mktemp(request.param)
    target = directory / "executed.ipynb"
    command = [
        sys.executable,
        str(ROOT / ".ci/notebook.py"),
        str(ROOT / f"examples/{request.param}.ipynb"),
        str(target),
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(directory / "ipython"), "MPLBACKEND": "agg"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    variables["PYTHONPATH"] = path
    ran = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    return request.param, [cell for cell in cells if cell["cell_type"] == "code"], directory


def results(cells: list[Any], kind: str) -> list[str]:
    """What the last expressions of the cells are shown as."""
    outputs = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "execute_result"]
    return [output["data"][kind] for output in outputs if kind in output["data"]]


def said(cells: list[Any]) -> str:
    return "".join(output["text"] for cell in cells for output in cell["outputs"] if output.get("name") == "stdout")


def test_notebooks_are_stored_without_outputs() -> None:
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        assert path.stat().st_size < 10_000
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_installs_what_is_missing_there(path: Path) -> None:
    title, install, *_ = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert f"({COLAB}/{path.name})" in "".join(title["source"])
    assert "    %pip install --quiet lightning-gradwatch " in "".join(install["source"])
    recipe = (ROOT / "docs/recipes/notebooks.md").read_text(encoding="utf-8")
    assert f"({COLAB}/{path.name})" in recipe


def test_a_notebook_shows_what_it_says(executed: tuple[str, list[Any], Path]) -> None:
    name, cells, directory = executed
    texts, pages = "\n".join(results(cells, "text/plain")), results(cells, "text/html")
    if name == "sick_and_cured":
        assert "SICK: Gradients vanish with depth" in texts
        assert "11 sigmoids" in texts
        assert "ReLU, GELU or SiLU with He initialisation" in texts
        assert "HEALTHY: No alert up to step 99" in texts
        assert sum("<svg" in page for page in pages) == 2
        assert sum("<iframe" in page for page in pages) == 1
    elif name == "your_own_model":
        assert "HEALTHY: No alert up to step 99" in texts
        assert "History: 3 layers" in texts
        assert [line.split()[0] for line in said(cells).splitlines()] == ["features.0", "features.2", "head"]
        assert (directory / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    else:
        step = int(re.findall(r"stopped after step (\d+)", said(cells))[0])
        assert 9 <= step < 20
        assert "  Try  1. ReLU" in said(cells)
        assert {path.name for path in directory.iterdir()} == {"executed.ipynb", "ipython"}  # nothing else was written
    assert all(len(page) < 4_000_000 for page in pages)


@pytest.mark.parametrize("policy", ["", POLICY_OF_VS_CODE], ids=["jupyter", "vs_code"])
def test_what_is_shown_draws_without_a_network(
    policy: str, executed: tuple[str, list[Any], Path], tmp_path: Path
) -> None:
    _, cells, _ = executed
    pages = results(cells, "text/html")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{head}<body>{'<hr>'.join(pages)}", encoding="utf-8")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1100, "height": 1400})
        complaints: list[str] = []
        requests: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        for place in range(sum("<iframe" in page for page in pages)):
            frame = tab.frame_locator("iframe").nth(place)
            frame.locator("main[aria-busy=false]").wait_for(timeout=20_000)
            assert frame.locator("canvas.heat").count() == 1
            frame.locator("select", has_text="Weight norm").first.select_option(label="Weight norm")
            frame.locator("main[aria-busy=false]").wait_for()
            # the page has an origin of its own: the notebook is out of its reach
            assert (
                tab.frames[place + 1].evaluate("() => { try { return parent.document.title } catch { return null } }")
                is None
            )
        assert tab.url == path.as_uri()
        tab.screenshot(path=str(tmp_path / "notebook.png"), full_page=True)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:", "about:", path.as_uri()))] == []
