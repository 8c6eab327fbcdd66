"""A page from the tab's modules and the data. No text of a log stands in it but packed, so none of it can be markup.

In a file, the modules stand in an import map. In a frame of a notebook the notebook's own policy holds as well, and
some allow no script but what stands in the page itself: there the modules are joined into one.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from lightning_gradwatch.tensorboard.joining import join

_PACKAGE = Path(str(files("lightning_gradwatch")))
_STATIC = _PACKAGE / "tensorboard" / "static"
_ENTRY = _PACKAGE / "cli" / "page" / "report.js"
_STYLES = (_STATIC / "vendor" / "uplot.css", _STATIC / "style.css")
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])(\.{1,2}/[^"']+)\2""")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'nonce-{nonce}'; \
style-src 'nonce-{nonce}'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>GradWatch</title>
<style nonce="{nonce}">{style}</style>
{modules}</head>
<body>
<noscript>This page needs JavaScript to draw; it loads nothing from anywhere.</noscript>
<script type="text/plain" id="gradwatch-data">{data}</script>
<script nonce="{nonce}" type="module">{script}</script>
</body>
</html>
"""


def assemble(data: Mapping[str, object]) -> str:
    """The page for a file.

    Args:
        data: Plain JSON, as the module ``embedded.js`` takes it.
    """
    modules: dict[str, str] = {}
    _collect(_ENTRY, modules)
    imports = {name: f"data:text/javascript;base64,{_pack(source.encode())}" for name, source in modules.items()}
    nonce = secrets.token_urlsafe(16)
    import_map = f'<script nonce="{nonce}" type="importmap">{json.dumps({"imports": imports})}</script>\n'
    return _page(data, nonce, import_map, f'import "{_name(_ENTRY)}";')


def assemble_inline(data: Mapping[str, object]) -> str:
    """The page for a frame of a notebook; data as for ``assemble``."""
    # what would end the script, or begin a comment of HTML, can only stand in a text or a regular expression
    script = join(_ENTRY).replace("</", "<\\/").replace("<!--", "<\\!--")
    return _page(data, secrets.token_urlsafe(16), "", script)


def _page(data: Mapping[str, object], nonce: str, modules: str, script: str) -> str:
    return _PAGE.format(
        nonce=nonce,
        style="\n".join(path.read_text(encoding="utf-8") for path in _STYLES),
        modules=modules,
        data=_pack(gzip.compress(json.dumps(data, allow_nan=False).encode(), mtime=0)),
        script=script,
    )


def _collect(path: Path, modules: dict[str, str]) -> None:
    """A module and all that it imports, by names that do not depend on where a module lies."""
    name = _name(path)
    if name in modules:
        return
    source = modules[name] = path.read_text(encoding="utf-8")
    imported = {relative: (path.parent / relative).resolve() for _, _, relative in _IMPORT.findall(source)}
    modules[name] = _IMPORT.sub(lambda found: f'{found[1]}"{_name(imported[found[3]])}"', source)
    for other in imported.values():
        _collect(other, modules)


def _name(path: Path) -> str:
    return f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"


def _pack(content: bytes) -> str:
    return b64encode(content).decode("ascii")
