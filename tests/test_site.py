"""The documentation site: built strictly, whole, and nothing in it comes from elsewhere."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from mkdocs.config import load_config

import lightning_gradwatch
from tests.tensorboard.browser import chromium
from tests.test_guide import PAGES

ROOT = Path(__file__).parents[1]
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
"""What a browser loads with a page; a link's `rel` may say that it is a mere address."""
ADDRESSES = {"canonical", "prev", "next", "edit"}
LEFT_OVER = re.compile(r"\]\(|\|---|\*\*|^#+ |^:::|^- |^\d\. |\]\[", re.MULTILINE)
"""Markdown that has not become HTML."""


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(root / "mkdocs.yml"),
        "--site-dir",
        str(site),
    ]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


class Parsed(HTMLParser):
    """What a page of the site has: its anchors, its links, what it loads, and its text outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in ("code", "script", "style"):
            self.inside.append(tag)
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if not ADDRESSES & set(given.get("rel", "").split()):
            self.loaded += [given[name] for element, name in LOADED if element == tag and name in given]

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is published."""
    directory = tmp_path_factory.mktemp("site")
    built = build(ROOT, directory)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Parsed]:
    """Every page of it."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): Parsed(path.read_text(encoding="utf-8")) for path in found}


def named(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from named(part)


def test_every_page_is_in_the_navigation_once(pages: dict[str, Parsed]) -> None:
    nav = list(named(load_config(str(ROOT / "mkdocs.yml")).nav))
    assert sorted(nav) == sorted([*PAGES, "changelog.md"])
    assert set(pages) == {name.removesuffix(".md") + ".html" for name in nav} | {"404.html"}


def test_internal_links_and_anchors_lead_somewhere(pages: dict[str, Parsed], site: Path) -> None:
    num, broken = 0, []
    for name, page in pages.items():
        for link in page.links if name != "404.html" else []:
            path, _, anchor = unquote(link).partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            num += 1
            target = (site / name).parent / path if path else site / name
            is_page = target.suffix == ".html"
            known = pages[target.resolve().relative_to(site.resolve()).as_posix()].anchors if is_page else {""}
            if not target.is_file() or anchor not in known:
                broken.append((name, link))
    assert num > 3000
    assert broken == []


def test_links_into_the_repository_lead_to_files_that_are_there(pages: dict[str, Parsed]) -> None:
    start = "https://github.com/lightning-gradwatch/lightning-gradwatch/blob/main/"
    paths = {
        link.removeprefix(start).partition("#")[0] for page in pages.values() for link in page.links if start in link
    }
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_no_page_asks_for_anything_from_another_host(pages: dict[str, Parsed], site: Path) -> None:
    assert sum(len(page.loaded) for page in pages.values()) > 300
    assert {address for page in pages.values() for address in page.loaded if "//" in address} == set()
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert len(styles) > 2
    assert [style for style in styles if re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style)] == []


def test_no_markup_is_left_in_the_text(pages: dict[str, Parsed]) -> None:
    assert {name: found for name, page in pages.items() if (found := LEFT_OVER.findall(page.text))} == {}
    assert "no alarm" in pages["how-right.html"].text
    assert LEFT_OVER.findall(Parsed("<p>[a](b)\n- c</p><code>**d**</code>").text) == ["](", "- "]


def test_every_public_name_is_on_the_page_of_the_api(pages: dict[str, Parsed]) -> None:
    names = {f"lightning_gradwatch.{name}" for name in vars(lightning_gradwatch)["__all__"]}
    assert len(names) > 15
    assert names - pages["api.html"].anchors == set()
    assert names - {link.partition("#")[2] for link in pages["api.html"].links} == set()
    assert "lightning_gradwatch.core.watcher.Watcher.observe" in pages["api-core.html"].anchors


@pytest.mark.parametrize(
    ("path", "old", "new", "complaint"),
    [
        ("docs/faq.md", "(limits.md)", "(nonsense.md)", "nonsense.md"),
        ("docs/faq.md", "(clipping.md#which-one)", "(clipping.md#nonsense)", "#nonsense"),
        ("docs/faq.md", "(pictures/born_light.png)", "(pictures/nonsense.png)", "pictures/nonsense.png"),
        ("docs/index.md", "(../tests/test_guide.py)", "(../tests/nonsense.py)", "../tests/nonsense.py"),
        ("mkdocs.yml", "  - Questions: faq.md\n", "", "faq.md"),
        ("docs/api.md", "::: lightning_gradwatch.Percentile\n", "", "lightning_gradwatch.Percentile"),
        (
            "lightning_gradwatch/core/clip/band.py",
            "[lightning_gradwatch.MaxNorm]",
            "[nonsense.MaxNorm]",
            "nonsense.MaxNorm",
        ),
    ],
)
def test_what_is_broken_fails_the_build(tmp_path: Path, path: str, old: str, new: str, complaint: str) -> None:
    copied = ("docs", "lightning_gradwatch", "mkdocs.yml")
    for name in copied[:2]:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for other in ROOT.iterdir():
        if other.name not in copied:
            (tmp_path / other.name).symlink_to(other)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    text = (tmp_path / path).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / path).write_text(text.replace(old, new), encoding="utf-8")
    built = build(tmp_path, tmp_path / "built")
    assert built.returncode != 0
    warnings = built.stderr.split("\nWARNING")[1:]
    assert warnings
    assert all(complaint in warning for warning in warnings)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a server of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_browser_that_looks_around_meets_no_other_host_and_no_error(site: Path) -> None:
    with served(site) as address, chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index.html", "alerts/vanishing.html", "api.html"):
            page.goto(f"{address}/{name}")
            page.wait_for_timeout(300)
        assert len(asked) > 10
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert errors == []


@pytest.mark.parametrize("kind", ["server", "file"])
def test_the_search_finds_words_also_where_pages_are_opened_from_files(site: Path, kind: str) -> None:
    with served(site) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{address}/recipes/gan.html" if kind == "server" else (site / "recipes" / "gan.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type("memory horizon")
        found = page.locator(".md-search-result__link")
        found.first.wait_for(timeout=15_000)
        assert any("vanishing-through-time" in str(link.get_attribute("href")) for link in found.all())
