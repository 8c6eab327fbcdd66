/** From the state and the answers of the source to what is drawn. */
import { foremost } from "./banner.js";
import { lookup, stopsOf } from "./colours.js";
import { differenceFrame, isComparable, runsAlike } from "./compare.js";
import { lanesOf } from "./lanes.js";
import { differenceScale, scaleOf, toCells } from "./scale.js";
import { columnAt, domainOf, nearestColumn, spansOf } from "./steps.js";
import { learn, quantityOf, shown } from "./tables.js";
import { groupsOf, rowOf, rowsOf } from "./tree.js";

/** @typedef {Omit<View, "scale" | "cells" | "spans">} Loaded A view without colours. */

/** @param {{versions: Version[]}} optimizer */
const newest = ({ versions }) => versions.reduce((last, version) => (version.version > last.version ? version : last));

/**
 * The run that the state names, else the sickest of those on offer that has data.
 * @param {RunRow[]} runs
 * @param {RunRow[]} offered
 * @param {string|null} name
 * @returns {RunRow|undefined}
 */
export function chosenRun(runs, offered, name) {
  const isWatched = (/** @type {RunRow} */ { status }) => status !== "not_watched";
  return runs.find(({ run }) => run === name) ?? offered.find(isWatched) ?? runs.find(isWatched) ?? runs[0];
}

/**
 * The optimizer that the state names, else that of the alert that matters most.
 * @param {RunDocument} run
 * @param {string|null} name
 */
function chosenOptimizer({ optimizers, alerts }, name) {
  const byName = (/** @type {string|null|undefined} */ wanted) =>
    optimizers.find((optimizer) => optimizer.name === wanted);
  return byName(name) ?? byName(foremost(alerts)?.optimizer) ?? optimizers[0];
}

/**
 * Steps to ask for so that cells at the edges of `zoom` are whole: one column more on either side.
 * @param {Interval} zoom
 * @param {Frame} overview
 * @param {Spans} spans
 */
function around(zoom, overview, spans) {
  const at = (/** @type {number} */ step) => {
    const column = columnAt(spans, step);
    return column >= 0 ? column : nearestColumn(overview, step);
  };
  const [first, last] = [Math.max(at(zoom[0]) - 1, 0), Math.min(at(zoom[1]) + 1, overview.columns - 1)];
  return { from: overview.steps[first], to: overview.lastSteps[last] };
}

/**
 * `zoom` within `full`; moved along if it ended at the newest step before. Null if it shows everything.
 * @param {Interval|null} zoom
 * @param {Interval} full
 * @param {Interval|null} before
 * @returns {Interval|null}
 */
function follow(zoom, full, before) {
  if (!zoom) return null;
  const wasAtEnd = before && zoom[1] >= before[1] - 1e-9;
  const shift = wasAtEnd ? full[1] - before[1] : 0;
  const from = Math.max(zoom[0] + shift, full[0]);
  const to = Math.min(zoom[1] + shift, full[1]);
  return to > from && to - from < full[1] - full[0] - 1e-9 ? [from, to] : null;
}

/**
 * The axis that shows a run. Where most of its steps are on record it goes from the first to the last of them, whatever
 * is shown: a single sample is then as narrow as the step that it is from.
 * @param {Version} version
 * @param {Frame} overview
 * @returns {Interval}
 */
function axisOf({ first_step: first, last_step: last, num_samples: count }, overview) {
  const [from, to] = [first - 0.5, last + 0.5];
  if (to - from < 1.5 * count) return [from, to];
  const [low, high] = domainOf(overview);
  return [Math.min(low, from), Math.max(high, to)];
}

/**
 * Load what the heatmap needs.
 * @param {Ask} ask
 * @param {RunRow[]} runs
 * @param {RunRow} row The run, out of the list of runs.
 * @param {State} state
 * @param {number} columns
 * @param {View|null} before The view before this one, to follow the newest step.
 * @returns {Promise<{run: RunDocument, view: View|null}>} No view where there is nothing to draw.
 */
export async function loadView(ask, runs, row, state, columns, before) {
  const run = await ask("run", { run: row.run }, row.stamp);
  learn(run.view.quantities);
  if (!run.optimizers.length) return { run, view: null };
  const { name: optimizer, versions } = chosenOptimizer(run, state.optimizer);
  const version = newest({ versions });
  const quantities = shown(version.quantities);
  if (!quantities.length) return { run, view: null };
  const quantity = quantities.find((name) => name === state.quantity) ?? quantities[0];
  const query = { run: row.run, optimizer, version: version.version, quantity, columns };
  const overview = await ask("heatmap", query, row.stamp);
  const spans = spansOf(overview);
  const full = axisOf(version, overview);
  const key = JSON.stringify([row.run, optimizer]);
  const zoom = follow(state.zoom, full, before?.key === key ? before.full : null);
  const part = zoom ? around(zoom, overview, spans) : {};
  const closer = { ...query, ...part };
  const frame = zoom ? await ask("heatmap", closer, row.stamp) : overview;
  /** @type {Loaded} */
  const view = {
    key, run, rowOfRun: row, optimizer, version, quantity, quantities, full, zoom, frame, overview, query: closer,
    optimizers: run.optimizers.map(({ name }) => name),
    domain: zoom ?? full,
    layers: version.layers,
    groups: groupsOf(version.layers),
    alerts: run.alerts.filter((alert) => !alert.optimizer || !optimizer || alert.optimizer === optimizer),
    compare: null,
  };
  const other = runs.find(({ run: name }) => name === state.compare && name !== row.run);
  const partner = other && partnerOf(await ask("run", { run: other.run }, other.stamp), other, optimizer);
  const canCompare = partner && partner.quantities.includes(quantity) && isComparable(view.layers, partner.layers);
  return { run, view: coloured(canCompare ? await compared(ask, view, partner, part, columns) : view) };
}

/**
 * @param {Ask} ask
 * @param {Loaded} view
 * @param {Partner} partner
 * @param {{from?: number, to?: number}} part
 * @param {number} columns
 * @returns {Promise<Loaded>}
 */
async function compared(ask, view, partner, part, columns) {
  const { run, optimizer, version, stamp } = partner;
  const query = { run, optimizer, version, quantity: view.quantity, columns };
  const there = await ask("heatmap", query, stamp);
  const closer = view.zoom ? await ask("heatmap", { ...query, ...part }, stamp) : there;
  return {
    ...view,
    compare: run,
    overview: differenceFrame(view.overview, there, view.quantity),
    frame: differenceFrame(view.frame, closer, view.quantity),
  };
}

/**
 * Colours by the whole run, so that they stay when the person zooms.
 * @param {Loaded} view
 * @returns {View}
 */
function coloured(view) {
  const { overview, frame, quantity, compare } = view;
  const scale = compare ? differenceScale(quantity, overview.values) : scaleOf(quantity, overview.values);
  return { ...view, scale, cells: toCells(frame.values, scale), spans: spansOf(frame) };
}

/**
 * What another run has to offer for comparing: the layers of the same optimizer.
 * @param {RunDocument} doc
 * @param {RunRow} row
 * @param {string} optimizer
 * @returns {Partner|null}
 */
export function partnerOf(doc, row, optimizer) {
  const { run, stamp } = row;
  const only = doc.optimizers.length === 1 ? doc.optimizers[0] : null;
  const found = doc.optimizers.find(({ name }) => name === optimizer) ?? only;
  if (!found) return null;
  const { version, layers, quantities } = newest(found);
  return { run, stamp, optimizer: found.name, version, layers, quantities };
}

/**
 * The view with the cursor in it and the colours of the theme.
 * @param {View} view
 * @param {State} state
 * @param {Palette} palette
 * @param {RunRow[]} runs
 * @returns {Omit<Model, "overlays" | "exact" | "means">}
 */
export function toModel(view, state, palette, runs) {
  const { frame, layers, groups, alerts, quantity, domain } = view;
  const rows = rowsOf(layers, groups, new Set(state.folded));
  const suggested = foremost(alerts)?.layer;
  const known = (/** @type {string|null|undefined} */ name) => layers.find((layer) => layer === name);
  const layer = known(state.layer) ?? known(suggested) ?? layers[0];
  const stops = stopsOf(view.compare !== null, palette.neutral);
  const span = `the steps ${Math.ceil(domain[0])} to ${Math.floor(domain[1])}`;
  return {
    ...view, rows, palette, stops, layer,
    lookup: lookup(stops),
    row: rowOf(rows, layers.indexOf(layer)),
    column: state.step === null ? frame.columns - 1 : nearestColumn(frame, state.step),
    lanes: lanesOf(alerts),
    isZoomed: view.zoom !== null,
    isFolded: groups.some(({ path }) => state.folded.includes(path)),
    comparable: runsAlike(runs, view.rowOfRun, view.optimizer).map(({ run }) => run),
    label: `${quantityOf(quantity).label} of ${layers.length} layers over ${span}. Use the arrow keys.`,
  };
}

/**
 * The thumbnail of a run: its own small heatmap, coloured by its own scale.
 * @param {Frame} frame
 * @param {string} quantity
 * @returns {Picture}
 */
export function thumbnailOf(frame, quantity) {
  const cells = toCells(frame.values, scaleOf(quantity, frame.values));
  return { frame, spans: spansOf(frame), domain: domainOf(frame), cells, lookup: lookup(stopsOf(false)) };
}
