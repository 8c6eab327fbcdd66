/** Layers grouped by module path, as rows that can be folded. */
import { layersIn } from "./spans.js";

/** A group bracket is drawn for at most this many levels. */
const MAX_LEVELS = 3;

/**
 * Groups of neighbours that share a path, outermost first.
 * @param {string[]} layers Names in running order.
 * @returns {Group[]}
 */
export function groupsOf(layers) {
  const paths = layers.map((layer) => layer.split("."));
  const groups = /** @type {Group[]} */ ([]);
  gather(paths, 0, paths.length - 1, 0, 0, groups);
  return groups;
}

/**
 * @param {string[][]} paths
 * @param {number} first
 * @param {number} last
 * @param {number} depth
 * @param {number} level
 * @param {Group[]} groups
 */
function gather(paths, first, last, depth, level, groups) {
  let start = first;
  for (let i = first + 1; i <= last + 1; i += 1) {
    if (i <= last && paths[i][depth] !== undefined && paths[i][depth] === paths[start][depth]) continue;
    const end = i - 1;
    if (end > start) enter(paths, start, end, depth, level, groups, start === first && end === last);
    start = i;
  }
}

/**
 * A group that holds all there is says nothing and is passed through.
 * @param {string[][]} paths
 * @param {number} first
 * @param {number} last
 * @param {number} depth
 * @param {number} level
 * @param {Group[]} groups
 * @param {boolean} isWhole
 */
function enter(paths, first, last, depth, level, groups, isWhole) {
  let deepest = depth;
  const own = paths.slice(first, last + 1);
  const shares = (/** @type {number} */ at) => {
    const name = paths[first][at];
    return name !== undefined && own.every((path) => path[at] === name && path.length > at + 1);
  };
  while (shares(deepest + 1)) deepest += 1;
  if (!isWhole) groups.push({ path: paths[first].slice(0, deepest + 1).join("."), first, last, level });
  const next = level + (isWhole ? 0 : 1);
  if (next < MAX_LEVELS) gather(paths, first, last, deepest + 1, next, groups);
}

/**
 * How layers share rows: as it was before, while somebody looks, as long as the same layers are sick.
 * @param {Version} version
 * @param {Alert[]} alerts
 * @param {View|null} before
 * @param {string} layout What else decides it.
 */
export function planOf({ version, rows }, alerts, before, layout) {
  const sickOf = (/** @type {Alert[]} */ found) => JSON.stringify(found.map(({ layer }) => layer));
  const isAlike = before?.version.version === version && before.layout === layout;
  return isAlike && sickOf(before.run.alerts) === sickOf(alerts) ? before.plan : rows;
}

/**
 * What somebody does with the rows that the server proposes.
 * @typedef {{folded: string[], opened: string[]}} Choices
 */

/** Opens everything. */
export const ALL = "*";

/**
 * The rows of the heatmap: a layer, or several layers together.
 * @param {string[]} layers
 * @param {Group[]} groups
 * @param {Fold[]} plan
 * @param {Choices} choices
 * @returns {Row[]}
 */
export function rowsOf(layers, groups, plan, { folded, opened }) {
  const isWhole = opened.includes(ALL) || !plan.length;
  const all = plan.length ? inPlan(plan) : layers.map((_, i) => i);
  const planned = unfolded(layers, isWhole ? all : plan, new Set(opened), []);
  const outer = groups.filter(({ path }) => folded.includes(path));
  return together(planned, outer).map((row, index) => ({ ...row, index }));
}

/**
 * Places of the layers in a plan, rising: all but those that are hidden.
 * @param {Fold[]} plan
 */
export const inPlan = (plan) =>
  plan.flatMap((fold) => (typeof fold === "number" ? [fold] : layersIn(fold.layers))).sort((a, b) => a - b);

/** @typedef {Omit<Row, "index">} Loose A row without a place. */

/**
 * @param {string[]} layers
 * @param {number} layer
 * @param {string[]} inside
 * @returns {Loose}
 */
const rowOfLayer = (layers, layer, inside) =>
  ({ first: layer, last: layer, layers: [layer], label: layers[layer], path: null, inside });

/**
 * @param {string} path
 * @param {number[]} own
 * @param {string[]} inside
 * @returns {Loose}
 */
function rowOfGroup(path, own, inside) {
  const [first, last] = [Math.min(...own), Math.max(...own)];
  return { first, last, layers: own, label: `${path} (${own.length} layers)`, path, inside };
}

/**
 * @param {string[]} layers
 * @param {Fold[]} plan
 * @param {Set<string>} opened
 * @param {string[]} inside
 * @returns {Loose[]}
 */
function unfolded(layers, plan, opened, inside) {
  return plan.flatMap((fold) => {
    if (typeof fold === "number") return [rowOfLayer(layers, fold, inside)];
    const own = layersIn(fold.layers);
    if (!opened.has(fold.path)) return [rowOfGroup(fold.path, own, inside)];
    return unfolded(layers, fold.parts ?? own, opened, [...inside, fold.path]);
  });
}

/**
 * Rows with those in a folded group as one.
 * @param {Loose[]} rows
 * @param {Group[]} folded The outer ones first.
 */
function together(rows, folded) {
  if (!folded.length) return rows;
  const found = /** @type {Loose[]} */ ([]);
  let group = /** @type {Group|undefined} */ (undefined);
  for (const row of rows) {
    const holder = folded.find(({ first, last }) => row.first >= first && row.last <= last);
    if (!holder) found.push(row);
    else if (holder === group) {
      const { layers, inside } = found[found.length - 1];
      found[found.length - 1] = rowOfGroup(holder.path, [...layers, ...row.layers], inside);
    } else found.push(rowOfGroup(holder.path, row.layers, []));
    group = holder;
  }
  return found;
}

/**
 * Places of the layers in whose names all words stand, whatever their case.
 * @param {string[]} layers
 * @param {string} text
 */
export function matching(layers, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return layers.flatMap((layer, i) => (words.every((word) => layer.toLowerCase().includes(word)) ? [i] : []));
}

/**
 * What must be opened so that a layer has a row of its own, the outermost first.
 * @param {Fold[]} plan
 * @param {number} layer
 * @returns {string[]}
 */
export function holdersOf(plan, layer) {
  for (const fold of plan) {
    if (typeof fold === "number" || !layersIn(fold.layers).includes(layer)) continue;
    return [fold.path, ...holdersOf(fold.parts ?? [], layer)];
  }
  return [];
}

/**
 * The row that shows a layer.
 * @param {Row[]} rows
 * @param {number} layer
 */
export const rowOf = (rows, layer) => rows.findIndex(({ layers }) => layers.includes(layer));

/**
 * The laid out row at a height.
 * @template {Placed} Found
 * @param {Found[]} rows
 * @param {number} y
 */
export const rowAt = (rows, y) => rows.find(({ top, height }) => y >= top && y < top + height);

/**
 * Heights: folded rows stay readable, and layers share the rest.
 * @param {Row[]} rows
 * @param {number} height
 * @param {number} least Of a folded row.
 * @returns {PlacedRow[]}
 */
export function layOut(rows, height, least = 15) {
  const usual = height / rows.length;
  const folded = rows.filter((row) => row.path).length;
  const tall = Math.max(usual, Math.min(least, (0.8 * height) / Math.max(folded, 1)));
  const plain = rows.length > folded ? (height - folded * tall) / (rows.length - folded) : 0;
  let top = 0;
  return rows.map((row) => {
    const own = row.path ? tall : plain;
    top += own;
    return { ...row, top: top - own, height: own };
  });
}
