"""Modules of JavaScript joined into one: a browser asks for one file instead of fifty, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

_STATEMENT = re.compile(r"""^import\s+([^;"']+?)\s+from\s+["'](\.{1,2}/[^"']+)["'];""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
_DEFAULT = re.compile(r"^export default (\w+);", re.MULTILINE)


def join(entry: Path) -> str:
    """A module and all that it imports, as one that exports the same names.

    Each becomes a constant that holds what it exports, behind all that it imports. Statements of import and export must
    begin a line, as they do in the scripts of this package.
    """
    parts: dict[Path, str] = {}
    names = _join(entry.resolve(), parts)
    own = f"module{len(parts) - 1}"
    return "\n".join([*parts.values(), *(f"export const {name} = {own}.{name};" for name in names)])


def _join(path: Path, parts: dict[Path, str]) -> list[str]:
    """Put a module behind those that it imports; the names that it exports."""
    source = path.read_text(encoding="utf-8")
    imported = {relative: (path.parent / relative).resolve() for _, relative in _STATEMENT.findall(source)}
    for other in imported.values():
        if other not in parts:
            _join(other, parts)
    places = {other: place for place, other in enumerate(parts)}
    names = _EXPORT.findall(source)
    held = [*names, *(f"default: {name}" for name in _DEFAULT.findall(source))]

    def constant(found: re.Match[str]) -> str:
        what, module = found[1], f"module{places[imported[found[2]]]}"
        if what.startswith("* as "):
            return f"const {what.removeprefix('* as ')} = {module};"
        return f"const {what.replace(' as ', ': ') if what[0] == '{' else f'{{ default: {what} }}'} = {module};"

    body = _DEFAULT.sub("", _EXPORT.sub("", _STATEMENT.sub(constant, source)))
    parts[path] = f"const module{len(parts)} = await (async () => {{\n{body}\nreturn {{ {', '.join(held)} }};\n}})();"
    return names
