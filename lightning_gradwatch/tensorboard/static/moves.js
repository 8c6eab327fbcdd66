/** What keys and clicks do: from what is drawn and chosen to a change of the state. Nothing here has an effect. */
import { ALL, holdersOf, inPlan, matching } from "./tree.js";

/**
 * The row at a distance from the chosen one.
 * @param {Model} model
 * @param {number} by
 * @returns {Partial<State>}
 */
export function moveRow({ rows, row, layers }, by) {
  const wanted = rows[Math.min(Math.max(row + by, 0), rows.length - 1)];
  return { layer: layers[wanted.layers[0]] };
}

/**
 * The sample at a distance from the chosen one, among those that are seen.
 * @param {Model} model
 * @param {number|null} step
 * @param {number} by
 * @returns {Partial<State>}
 */
export function moveColumn(model, step, by) {
  const { frame, spans, domain, column, isZoomed } = model;
  const seen = frame.steps.map((_, i) => i).filter((i) => spans.right[i] > domain[0] && spans.left[i] < domain[1]);
  if (!seen.length) return {};
  const place = Math.min(Math.max(column + by, seen[0]), seen[seen.length - 1]);
  const staysNewest = !isZoomed && place === frame.columns - 1 && step === null;
  return { step: staysNewest ? null : frame.steps[place] };
}

/**
 * The first sample that is seen, or the last one: without zoom the newest, which is followed from then on.
 * @param {Model} model
 * @param {number|null} step
 * @param {boolean} isLast
 * @returns {Partial<State>}
 */
export function moveToEnd(model, step, isLast) {
  return isLast && !model.isZoomed ? { step: null } : moveColumn(model, step, isLast ? Infinity : -Infinity);
}

/**
 * The quantity at a distance from the one shown.
 * @param {Model} model
 * @param {number} by
 * @returns {Partial<State>}
 */
export function cycle({ quantities, quantity }, by) {
  return { quantity: quantities[(quantities.indexOf(quantity) + by + quantities.length) % quantities.length] };
}

/**
 * Open a row of several layers, or fold a group, or undo either.
 * @param {Model} model
 * @param {State} state
 * @param {string} path
 * @returns {Partial<State>}
 */
export function toggle({ rows }, { folded, opened }, path) {
  const without = (/** @type {string[]} */ paths) => paths.filter((other) => other !== path);
  if (folded.includes(path)) return { folded: without(folded) };
  if (opened.includes(path)) return { opened: without(opened) };
  return rows.some((row) => row.path === path) ? { opened: [...opened, path] } : { folded: [...folded, path] };
}

/**
 * Open the row of the chosen layer; or close again what was opened to show it; or fold the innermost group around it.
 * @param {Model} model
 * @param {State} state
 * @returns {Partial<State>}
 */
export function toggleHere(model, state) {
  const { layers, layer, groups, rows, row } = model;
  const index = layers.indexOf(layer);
  const holders = groups.filter(({ first, last }) => index >= first && index <= last);
  const path = rows[row].path ?? rows[row].inside.at(-1) ?? holders.at(-1)?.path;
  return path === undefined ? {} : toggle(model, state, path);
}

/**
 * Fold everything, as proposed where there are many layers, else all outer groups; or unfold everything.
 * @param {Model} model
 * @param {boolean} isFolded
 * @returns {Partial<State>}
 */
export function foldAll({ groups, plan }, isFolded) {
  if (!isFolded) return { folded: [], opened: isProposed(plan) ? [ALL] : [] };
  const outer = groups.filter(({ level }) => !level).map(({ path }) => path);
  return { opened: [], folded: isProposed(plan) ? [] : outer };
}

/** @param {Fold[]} plan */
const isProposed = (plan) => plan.some((fold) => typeof fold !== "number");

/**
 * Go where an alert opened.
 * @param {Model} model
 * @param {State} state
 * @param {Alert} alert
 * @returns {Partial<State>}
 */
export function showAlert({ zoom }, state, { optimizer, layer, step }) {
  const isSeen = zoom && step >= zoom[0] && step <= zoom[1];
  return { optimizer: optimizer || state.optimizer, layer: layer || state.layer, step, zoom: isSeen ? zoom : null };
}

/**
 * Give a layer a row of its own: open what holds it, and unfold what somebody has folded around it.
 * @param {Model} model
 * @param {State} state
 * @param {number} layer
 * @param {string[]} opened What stays open besides.
 * @returns {Partial<State>}
 */
function reveal({ groups, plan }, { folded }, layer, opened) {
  const around = groups.filter(({ first, last }) => layer >= first && layer <= last).map(({ path }) => path);
  const isWhole = opened.includes(ALL);
  return {
    opened: isWhole ? opened : [...new Set([...opened, ...holdersOf(plan, layer)])],
    folded: folded.filter((path) => !around.includes(path)),
  };
}

/**
 * Places of the layers in whose names all words stand; those that are hidden are left out.
 * @param {Model} model
 * @param {string} text
 */
export function findable({ layers, plan, isHiding }, text) {
  const seen = new Set(isHiding ? inPlan(plan) : []);
  return matching(layers, text).filter((layer) => !isHiding || seen.has(layer));
}

/**
 * The first of rising places after the chosen one, or the last before it, and round again; with `by` 0 the chosen one
 * itself if it is among them, else the first.
 * @param {number[]} found
 * @param {number} chosen
 * @param {number} by
 */
function nextOf(found, chosen, by) {
  if (by > 0) return found.find((one) => one > chosen) ?? found[0];
  if (by < 0) return found.findLast((one) => one < chosen) ?? found[found.length - 1];
  return found.includes(chosen) ? chosen : found[0];
}

/**
 * The next layer in whose name all words stand; with `by` 0 the chosen one if it fits, else the first.
 * @param {Model} model
 * @param {State} state
 * @param {string} text
 * @param {number} by
 * @param {string[]} opened What was open before the search.
 * @returns {Partial<State>}
 */
export function find(model, state, text, by, opened) {
  const { layers, layer } = model;
  const found = findable(model, text);
  if (!found.length) return {};
  const next = nextOf(found, layers.indexOf(layer), by);
  const kept = state.opened.includes(ALL) ? [ALL] : opened;
  return { layer: layers[next], ...reveal(model, state, next, kept) };
}

/**
 * Alerts of a layer, those that go on before those that are over, each by how much it matters.
 * @param {Pick<Model, "alerts" | "layers">} model
 */
export const sickOf = ({ alerts, layers }) =>
  alerts
    .filter(({ layer }) => layers.includes(layer))
    .sort((a, b) => Number(a.until_step !== null) - Number(b.until_step !== null) || a.rank - b.rank);

/**
 * Go to the sickest layer; from there to the next one.
 * @param {Model} model
 * @param {State} state
 * @returns {Partial<State>}
 */
export function toSickest(model, state) {
  const sick = sickOf(model);
  if (!sick.length) return {};
  const place = sick.findIndex(({ layer, step }) => layer === model.layer && step === state.step);
  const alert = sick[(place + 1) % sick.length];
  const where = showAlert(model, state, alert);
  return { ...where, ...reveal(model, state, model.layers.indexOf(alert.layer), state.opened) };
}

/**
 * Another optimizer has other layers.
 * @param {Partial<State>} patch
 * @returns {Partial<State>}
 */
export const chooseView = (patch) =>
  "optimizer" in patch ? { ...patch, layer: null, folded: [], opened: [], compare: null } : patch;
