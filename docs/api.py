"""Make the API reference, ``docs/api.md``, from the docstrings of the public names.

python docs/api.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from docstring_parser.common import DocstringExample, DocstringMeta, DocstringParam, DocstringRaises
from docstring_parser.google import GoogleParser, Section, SectionType

import lightning_gradwatch
from lightning_gradwatch import GradWatch
from lightning_gradwatch.config import configure
from lightning_gradwatch.core.alerts import KINDS
from lightning_gradwatch.core.alerts.hysteresis import Hysteresis
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.quantities.quantity import LayerQuantity
from lightning_gradwatch.core.records import AlertKind, Clip, Finding, Observation, Publication, Window
from lightning_gradwatch.core.reports import Report
from lightning_gradwatch.core.samples import Sample
from lightning_gradwatch.core.sampling import Sampling
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.fabric import GradWatch as FabricGradWatch
from lightning_gradwatch.loop import WatchedLoop
from lightning_gradwatch.notebook.history import Distributions, Recorded
from lightning_gradwatch.notebook.history import History as Recordings
from lightning_gradwatch.notebook.report import Report as RunReport
from lightning_gradwatch.outputs.tensorboard import Writer
from lightning_gradwatch.showing import Showing
from lightning_gradwatch.watched import WatchedRun

REFERENCE = Path(__file__).parent / "api.md"
WITHOUT_LIGHTNING = (
    WatchedLoop,
    WatchedRun,
    configure,
    Watcher,
    Settings,
    Sampling,
    Schedule,
    Report,
    Publication,
    Window,
    Sample,
    Clip,
    Writer,
)
OF_RULES: tuple[type, ...] = (Rule, Hysteresis, Finding, Observation, History, LayerQuantity)
OF_NOTEBOOKS = (Showing, RunReport, Recordings, Recorded, Distributions)
OF_GRADWATCH = ("alerts", "profile")
"""The rest is for Lightning to call."""
PARSER = GoogleParser()
PARSER.add_section(Section("Source", "source", SectionType.SINGULAR))
TITLES = {"param": "Arguments", "attribute": "Attributes", "raises": "Raises", "returns": "Returns", "source": "Source"}
INTRODUCTION = """# API reference

Made from the docstrings by `python docs/api.py`. What it is for stands in the [guide](guide.md).
"""


def all_of(things: Sequence[Any]) -> list[str]:
    """Each under its full name."""
    return [line for thing in things for line in described(f"{thing.__module__}.{thing.__name__}", thing)]


def reference() -> str:
    """The whole reference as Markdown: what the package exports, then what a loop without Lightning needs."""
    parts = [INTRODUCTION, "## `lightning_gradwatch`\n"]
    for name in vars(lightning_gradwatch)["__all__"]:
        parts += described(name, getattr(lightning_gradwatch, name))
    parts += kinds()
    told = "What `GradWatch`, and what `watch(...)` returns, show of their run: see [the recipe](guide.md#notebooks)."
    parts.append(f"## In notebooks and scripts\n\n{told}\n")
    parts += all_of(OF_NOTEBOOKS)
    parts.append("## In Fabric\n\nSee [the recipe](guide.md#fabric).\n")
    parts += all_of((FabricGradWatch,))
    parts.append("## Without Lightning\n\nThese know torch only.\n")
    parts += all_of(WITHOUT_LIGHTNING)
    told = "What they implement, and what they are given: [how to extend](extending.md)."
    parts.append(f"## Rules and quantities of your own\n\n{told}\n")
    parts += all_of(OF_RULES)
    return "\n".join(parts)


def kinds() -> Iterator[str]:
    """The table of the kinds of alerts."""
    yield "### Kinds of alerts\n"
    rows = [f"| [`{kind}`]({guide(kind)}) | {KINDS[kind].title} | {KINDS[kind].unit} |" for kind in get_args(AlertKind)]
    yield "\n".join(["| `Alert.kind` | what is wrong | `Alert.value` counts |", "|---|---|---|", *rows, ""])


def guide(kind: str) -> str:
    """The section of the guide about a kind."""
    return f"guide.md#{kind.replace('_', '-')}"


def described(title: str, thing: Any) -> Iterator[str]:
    """A class or function with its arguments, then its own public methods and properties."""
    yield f"### `{title}`\n"
    yield from signature(thing)
    yield from documented(thing)
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        function = getattr(member, "__func__", member)
        is_documented = (callable(function) or isinstance(function, property)) and function.__doc__
        if is_documented and not name.startswith("_") and (thing is not GradWatch or name in OF_GRADWATCH):
            yield f"#### `{thing.__name__}.{name}`\n"
            yield from signature(function)
            yield from documented(function)


def signature(thing: Any) -> Iterator[str]:
    """How it is called; nothing for a property, or where there is nothing to pass."""
    if isinstance(thing, property) or (inspect.isclass(thing) and (issubclass(thing, Warning) or is_protocol(thing))):
        return
    given = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    keywords = [argument(p) for p in given if p.kind is p.KEYWORD_ONLY]
    lines = [argument(p) for p in given if p.kind is not p.KEYWORD_ONLY] + (["*", *keywords] if keywords else [])
    if lines:
        yield f"```text\n{thing.__name__}(\n    " + ",\n    ".join(lines) + ",\n)\n```\n"


def is_protocol(thing: Any) -> bool:
    """Whether it is a Protocol, which nobody calls."""
    return bool(getattr(thing, "_is_protocol", False))


def argument(parameter: inspect.Parameter) -> str:
    """Name, type and default; a default that is made afresh each time is shown as such."""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}".replace("<factory>", "...")
    return f"{parameter.name}: {parameter.annotation}{default}"


def documented(thing: Any) -> Iterator[str]:
    """The docstring, its sections as lists."""
    docstring = PARSER.parse(inspect.getdoc(thing))
    for text in (docstring.short_description, docstring.long_description):
        if text:
            yield markdown(text) + "\n"
    for kind in dict.fromkeys(meta.args[0] for meta in docstring.meta):
        metas = [meta for meta in docstring.meta if meta.args[0] == kind]
        if isinstance(metas[0], DocstringExample):
            yield f"**Example**\n\n```text\n{metas[0].description}\n```\n"
        elif kind in ("returns", "source"):
            yield f"**{TITLES[kind]}**: {entry(metas[0])}\n"
        else:
            yield f"**{TITLES[kind]}**\n\n" + "\n".join(f"- {entry(meta)}" for meta in metas) + "\n"


def entry(meta: DocstringMeta) -> str:
    """One argument, attribute, result or error."""
    name = meta.arg_name if isinstance(meta, DocstringParam) else None
    if isinstance(meta, DocstringRaises):
        name = meta.type_name
    text = " ".join(markdown(meta.description or "").split())
    return f"`{name}`: {text}" if name else text


def markdown(text: str) -> str:
    """References and literals of docstrings in the way of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text))


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
