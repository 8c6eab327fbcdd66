"""The GradWatch tab's endpoints: query strings in, JSON and frames out. Bad input gets a 4xx and a sentence."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast, get_args

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from lightning_gradwatch.core.metrics import PLUGIN
from lightning_gradwatch.core.quantities.several import HISTOGRAM, SEVERAL
from lightning_gradwatch.reading import answers, lines, run_list, tables
from lightning_gradwatch.reading.cache import Cache
from lightning_gradwatch.reading.heatmaps import Column, Rows, column, heatmap
from lightning_gradwatch.reading.norms import NORMS, TOTAL, Norm, norms_for
from lightning_gradwatch.reading.samples import Span, Statistic
from lightning_gradwatch.reading.schema import Description, UnreadableError, plain
from lightning_gradwatch.reading.spans import neighbours, places_of
from lightning_gradwatch.reading.store import Catalogue, MissingError, Series, Store
from lightning_gradwatch.tensorboard.inspection import inspector_of
from lightning_gradwatch.tensorboard.joining import join

STATIC = Path(__file__).parent / "static"
MAX_COLUMNS = 10_000
MAX_STEP = 2**53
"""The largest integer up to which JavaScript counts right."""
_JSON, _BYTES = "application/json", "application/octet-stream"
_JOINED = "start.js"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": _JSON}


class QueryError(ValueError):
    """An argument of a request breaks its rule."""


class Query:
    """The arguments of a request."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        self._arguments = arguments

    def text(self, name: str) -> str:
        """An argument that must be there."""
        if name not in self._arguments:
            raise QueryError(f"`{name}` must be given, but it is missing: add {name}=... to the address.")
        return self._arguments[name]

    def optional_text(self, name: str) -> str | None:
        """An argument that may be left out."""
        return self._arguments.get(name)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer from ``low`` to ``high``; None if it is left out."""
        given = self._arguments.get(name)
        if given is None:
            return None
        number = int(given) if re.fullmatch(r"-?[0-9]{1,16}", given) else None
        if number is None or not low <= number <= high:
            raise QueryError(f"`{name}` must be an integer from {low} to {high}, but {given[:40]!r} came.")
        return number

    def step(self) -> int:
        """The step that is asked for."""
        self.text("step")
        return self.integer("step", -MAX_STEP, MAX_STEP) or 0

    def span(self) -> Span:
        """First and last step."""
        first, last = (self.integer(name, -MAX_STEP, MAX_STEP) for name in ("from", "to"))
        if first is not None and last is not None and first > last:
            raise QueryError(f"`from` must not lie behind `to`, but from={first} and to={last} came: swap them.")
        return first, last

    def limit(self, name: str, low: int) -> int:
        """How many columns, or points, there may be at most."""
        return self.integer(name, low, MAX_COLUMNS) or answers.DEFAULT_COLUMNS

    def rows(self, num_layers: int) -> Rows | None:
        """Which layers share a row; None for a row for each."""
        given, most = self._arguments.get("rows"), self.integer("most_rows", 1, MAX_COLUMNS)
        if given is None:
            return None if most is None or most >= num_layers else neighbours(num_layers, most)
        try:
            return places_of(given, num_layers)
        except ValueError as wrong:
            raise QueryError(f"`rows` must be rows of layers such as 0,1-4,5..8, but {wrong}.") from None

    def norm(self, description: Description) -> Norm:
        """How gradient norms are shown: as is asked for where that is known, else of the whole layer."""
        given = self._arguments.get("norm", TOTAL.name)
        if given not in NORMS:
            raise QueryError(f"`norm` must be one of {', '.join(NORMS)}, but {given[:40]!r} came.")
        return NORMS[given] if given in norms_for(description) else TOTAL

    def layout(self) -> answers.Layout:
        """What decides which layers share rows."""
        return answers.Layout(self._arguments.get("norm"), self.integer("hide", 0, 1) == 1)

    def statistic(self) -> Statistic:
        """What stands for several steps."""
        given = self._arguments.get("statistic", "high")
        if given not in get_args(Statistic):
            raise QueryError(f"`statistic` must be one of {', '.join(get_args(Statistic))}, but {given[:40]!r} came.")
        return cast(Statistic, given)


Answer = Callable[[Store, Query], Mapping[str, object] | bytes]


def _heatmap(store: Store, query: Query) -> bytes:
    span, columns, statistic = query.span(), query.limit("columns", 1), query.statistic()
    series = _series(store, query, query.text("quantity"))
    about = series.description
    return heatmap(store, series, span, columns, statistic, query.rows(len(about.layers)), query.norm(about))


def _column(store: Store, query: Query) -> Column:
    step = query.step()
    series = _series(store, query, query.text("quantity"))
    about = series.description
    return column(store, series, step, query.rows(len(about.layers)), query.norm(about))


def _distribution(store: Store, query: Query) -> bytes:
    layer, span, columns = query.text("layer"), query.span(), query.limit("columns", 1)
    catalogue = store.catalogue(query.text("run"))
    series = answers.series_of(catalogue, *_whose(catalogue, query), HISTOGRAM.name)
    return answers.distribution(store, series, layer, span, columns)


def _sequence(store: Store, query: Query) -> answers.TimeProfile:
    layer, step = query.text("layer"), query.step()
    catalogue = store.catalogue(query.text("run"))
    return answers.sequence(store, catalogue, *_whose(catalogue, query), layer, step)


def _layer(store: Store, query: Query) -> dict[str, object]:
    layer, step = query.text("layer"), query.step()
    catalogue = store.catalogue(query.text("run"))
    return answers.layer(store, catalogue, *_whose(catalogue, query), layer, step)


def _scalars(store: Store, query: Query) -> lines.Scalars:
    run, tag, span, points = query.text("run"), query.text("tag"), query.span(), query.limit("points", 2)
    return lines.scalars(store, store.catalogue(run).run, tag, span, points)


def _whose(catalogue: Catalogue, query: Query) -> tuple[str, int]:
    version = query.integer("version", 0, MAX_STEP)
    return answers.find(catalogue, query.optional_text("optimizer"), version)


def _series(store: Store, query: Query, quantity: str) -> Series:
    """The series of a quantity with one number per layer."""
    catalogue = store.catalogue(query.text("run"))
    series = answers.series_of(catalogue, *_whose(catalogue, query), quantity)
    if quantity in SEVERAL:
        raise QueryError(
            f"`quantity` must have one number per layer, but {quantity!r} came: see /layer, /distribution."
        )
    return series


ANSWERS: dict[str, Answer] = {
    "tables": lambda *_: tables.encode(),
    "runs": lambda store, _: run_list.runs(store),
    "run": lambda store, query: answers.run(store, query.text("run"), query.layout()),
    "heatmap": _heatmap,
    "column": _column,
    "distribution": _distribution,
    "sequence": _sequence,
    "layer": _layer,
    "scalars": _scalars,
}


class GradWatchPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The tab.

    Args:
        context: What TensorBoard tells its plugins.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._cache = Cache()
        self._inspector = inspector_of(context.logdir)

    def get_plugin_apps(self) -> dict[str, object]:
        """The endpoints by their path."""
        apps = {f"/{name}": self._app(answer) for name, answer in ANSWERS.items()}
        return {**apps, "/static/*": Request.application(_serve_static)}

    def is_active(self) -> bool:
        """Never by itself: TensorBoard shows the tab once there is data of ours."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Where the browser starts. The tab reloads by itself, so TensorBoard need not."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="GradWatch")

    def _app(self, answer: Answer) -> object:
        def serve(request: Request) -> Response:
            if request.method not in ("GET", "HEAD"):
                return _refuse(request, 405, f"The method must be GET, but {request.method} came.")
            environ = request.environ
            context, experiment = plugin_util.context(environ), plugin_util.experiment_id(environ)
            inspect = self._inspector.damage if self._inspector is not None and not experiment else None
            try:
                found = answer(Store(self._provider, context, experiment, self._cache, inspect), Query(request.args))
            except MissingError as missing:
                return _refuse(request, 404, str(missing))
            except UnreadableError as unreadable:
                return _refuse(request, 422, str(unreadable))
            except QueryError as wrong:
                return _refuse(request, 400, str(wrong))
            return _respond(request, found)

        return Request.application(serve)


def _respond(request: Request, content: Mapping[str, object] | bytes, code: int = 200, kind: str = _BYTES) -> Response:
    if not isinstance(content, bytes):
        content, kind = json.dumps(plain(content), allow_nan=False).encode(), _JSON
    response: Response = http_util.Respond(request, content, kind, code=code)
    return response


def _refuse(request: Request, code: int, sentence: str) -> Response:
    return _respond(request, {"error": sentence}, code)


def _serve_static(request: Request) -> Response:
    """A file of the front end, looked up by its name among those that there are: no path can lead out of the folder."""
    if request.method not in ("GET", "HEAD"):
        return _refuse(request, 405, f"The method must be GET, but {request.method} came.")
    _, _, name = request.path.partition(f"/{PLUGIN}/static/")
    path = {file.relative_to(STATIC).as_posix(): file for file in STATIC.rglob("*")}.get(name)
    if path is None or not path.is_file():
        return _refuse(request, 404, f"There is no file {name[:80]!r} in the GradWatch tab.")
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or _BYTES
    # what follows the entry comes in one file: fifty of them take a browser seconds
    content = join(path).encode() if name == _JOINED else path.read_bytes()
    return _respond(request, content, kind=kind)
