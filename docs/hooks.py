"""What the site needs beyond its pages: the changelog as a page, pictures for the dark, and links that leave ``docs``.

On GitHub a link such as ``../tests/test_guide.py`` leads to the file. The site has no such file, so the link becomes
the file's address; a picture is taken along.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = "changelog.md"
LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")
LIGHT = re.compile(r"(!\[[^\]]*\]\([^)\s]+)_light\.png\)")
FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog, and the pictures beside the examples."""
    files.append(File.generated(config, CHANGELOG, abs_src_path=str(ROOT / "CHANGELOG.md")))
    for picture in sorted((ROOT / "examples").glob("*.png")):
        files.append(File.generated(config, f"examples/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave ``docs`` lead somewhere, and show a picture of the dark in the dark; code stays as it is."""
    source = page.file.src_uri
    here = "" if source == CHANGELOG else posixpath.dirname(f"docs/{source}")

    def lead(match: re.Match[str]) -> str:
        return f"{match[1]}{address(match[2], here, posixpath.dirname(source), config, files)}{match[3]}"

    parts = FENCES.split(markdown)
    whole = "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in parts)
    return LIGHT.sub(r"\1_light.png#only-light)\1_dark.png#only-dark)", whole)


def address(link: str, here: str, folder: str, config: MkDocsConfig, files: Files) -> str:
    """A link of a page that lies at ``here`` in the repository and in ``folder`` of the site, as the site needs it."""
    path = posixpath.normpath(posixpath.join(here, link))
    inside = CHANGELOG if path == "CHANGELOG.md" else path.removeprefix("docs/")
    if re.match(r"[a-z]+:", link) or not (ROOT / path).exists():
        return link  # of another host, or broken, as mkdocs will say
    if files.get_file_from_path(inside) is not None:
        return posixpath.relpath(inside, folder or ".")
    return f"{config.repo_url}/blob/main/{path}"


def on_post_page(output: str, **_: object) -> str:
    """Leave out the number of stars, for which each page would ask another host."""
    return output.replace('data-md-component="source"', "")
