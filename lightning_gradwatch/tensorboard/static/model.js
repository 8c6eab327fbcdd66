/** From the state and the answers of the source to what is drawn. */
import { foremost } from "./banner.js";
import { lookup, stopsOf } from "./colours.js";
import { differenceFrame, isComparable, runsAlike } from "./compare.js";
import { lanesOf } from "./lanes.js";
import { differenceScale, scaleOf, toCells } from "./scale.js";
import { rowsText } from "./spans.js";
import { domainOf, nearestColumn, spansOf } from "./steps.js";
import { kindOf, labelOf, learn, shown } from "./tables.js";
import { groupsOf, planOf, rowOf, rowsOf } from "./tree.js";
import { layoutOf, waysOf } from "./ways.js";
import { around, axisOf, follow } from "./zoom.js";

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
 * The quantity that the state names, else the one in which the alert that matters most is best seen.
 * @param {string[]} quantities
 * @param {Alert[]} alerts
 * @param {string|null} name
 */
function chosenQuantity(quantities, alerts, name) {
  const worst = foremost(alerts);
  const wanted = [name, worst && kindOf(worst.kind).shown_by];
  return wanted.find((one) => one && quantities.includes(one)) ?? quantities[0];
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
  const layout = layoutOf(state);
  const run = await ask("run", { run: row.run, ...layout }, row.stamp);
  learn(run.view.quantities);
  if (!run.optimizers.length) return { run, view: null };
  const { name: optimizer, versions } = chosenOptimizer(run, state.optimizer);
  const version = newest({ versions });
  const quantities = shown(version.quantities);
  if (!quantities.length) return { run, view: null };
  const ownAlerts = run.alerts.filter((alert) => !alert.optimizer || !optimizer || alert.optimizer === optimizer);
  const key = JSON.stringify([row.run, optimizer]);
  // who looks already stays with what is shown
  const seen = before?.key === key ? before.quantity : null;
  const quantity = chosenQuantity(quantities, ownAlerts, state.quantity ?? seen);
  const other = runs.find(({ run: name }) => name === state.compare && name !== row.run);
  const partner = other ? await alike(ask, other, optimizer, version.layers, quantity) : null;
  const { norms, norm } = waysOf(version, quantity, partner, state.norm);
  const groups = groupsOf(version.layers);
  const plan = planOf(version, run.alerts, before?.key === key ? before : null, JSON.stringify(layout));
  const rows = rowsOf(version.layers, groups, plan, state);
  const way = norm ? { norm } : {};
  const query = {
    run: row.run, optimizer, version: version.version, quantity, columns, rows: rowsText(rows), ...way,
  };
  const overview = await ask("heatmap", query, row.stamp);
  const spans = spansOf(overview);
  const full = axisOf(version, overview);
  const zoom = follow(state.zoom, full, before?.key === key ? before.full : null);
  const part = zoom ? around(zoom, overview, spans) : {};
  const closer = { ...query, ...part };
  const frame = zoom ? await ask("heatmap", closer, row.stamp) : overview;
  /** @type {Loaded} */
  const view = {
    key, run, rowOfRun: row, optimizer, version, quantity, quantities, norm, norms,
    full, zoom, frame, overview, query: closer,
    isHiding: state.hide !== null, layout: JSON.stringify(layout),
    optimizers: run.optimizers.map(({ name }) => name),
    domain: zoom ?? full,
    layers: version.layers,
    groups, plan, rows,
    alerts: ownAlerts,
    compare: null,
  };
  return { run, view: coloured(partner ? await compared(ask, view, partner, part, columns) : view) };
}

/**
 * A run to compare with, if it has the same layers and the quantity.
 * @param {Ask} ask
 * @param {RunRow} row
 * @param {string} optimizer
 * @param {string[]} layers
 * @param {string} quantity
 */
async function alike(ask, row, optimizer, layers, quantity) {
  const found = partnerOf(await ask("run", { run: row.run }, row.stamp), row, optimizer);
  return found?.quantities.includes(quantity) && isComparable(layers, found.layers) ? found : null;
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
  const { quantity, rows, norm } = view.query;
  const query = { run, optimizer, version, quantity, columns, rows, norm };
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
  const scale = compare ? differenceScale(quantity, overview.values) : scaleOf(quantity, overview);
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
  const { version, layers, quantities, norms } = newest(found);
  return { run, stamp, optimizer: found.name, version, layers, quantities, norms };
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
  const { frame, layers, rows, alerts, domain } = view;
  const suggested = foremost(alerts)?.layer;
  const known = (/** @type {string|null|undefined} */ name) =>
    layers.find((layer, i) => layer === name && rowOf(rows, i) >= 0);
  const layer = known(state.layer) ?? known(suggested) ?? layers[rows[0].layers[0]];
  const numSeen = rows.reduce((sum, row) => sum + row.layers.length, 0);
  const seen = numSeen < layers.length ? `${numSeen} of ${layers.length}` : `${layers.length}`;
  const stops = stopsOf(view.compare !== null, palette.neutral);
  const span = `the steps ${Math.ceil(domain[0])} to ${Math.floor(domain[1])}`;
  return {
    ...view, palette, stops, layer,
    lookup: lookup(stops),
    row: rowOf(rows, layers.indexOf(layer)),
    column: state.step === null ? frame.columns - 1 : nearestColumn(frame, state.step),
    lanes: lanesOf(alerts),
    isZoomed: view.zoom !== null,
    isFolded: rows.length < numSeen,
    comparable: runsAlike(runs, view.rowOfRun, view.optimizer).map(({ run }) => run),
    label: `${labelOf(view)} of ${seen} layers over ${span}. Use the arrow keys.`,
  };
}

/**
 * The thumbnail of a run: its own small heatmap, coloured by its own scale.
 * @param {Frame} frame
 * @param {string} quantity
 * @returns {Picture}
 */
export function thumbnailOf(frame, quantity) {
  const cells = toCells(frame.values, scaleOf(quantity, frame));
  return { frame, spans: spansOf(frame), domain: domainOf(frame), cells, lookup: lookup(stopsOf(false)) };
}
