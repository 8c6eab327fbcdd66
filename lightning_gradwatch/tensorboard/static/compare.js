/** Two runs of the same architecture: the difference, layer by layer and step by step. */
import { columnAt, spansOf } from "./steps.js";
import { quantityOf } from "./tables.js";

/** Stands for a cell that only one of the runs has. */
export const NOT_COMPARED = 2 ** 127;

/**
 * Difference of two values: decades of their ratio for quantities on a log scale (0 against 0 is no difference).
 * @param {number|undefined} here
 * @param {number|undefined} there
 * @param {string} quantity
 */
export function difference(here, there, quantity) {
  if (here === -1 || there === -1 || here === undefined || there === undefined) return NOT_COMPARED;
  if (!Number.isFinite(here) || !Number.isFinite(there)) return NaN;
  if (quantityOf(quantity).scale !== "log") return here - there;
  return here === there ? 0 : Math.log10(here) - Math.log10(there);
}

/**
 * Whether two runs list the same layers in the same order.
 * @param {string[]} layers
 * @param {string[]} others
 */
export const isComparable = (layers, others) =>
  layers.length === others.length && layers.every((layer, i) => layer === others[i]);

/**
 * What stands for the layers of an optimizer, or of the only one.
 * @param {RunRow} row
 * @param {string} optimizer
 */
function markOf({ layers }, optimizer) {
  const all = Object.values(layers);
  return layers[optimizer] ?? (all.length === 1 ? all[0] : undefined);
}

/**
 * The other runs with the same layers.
 * @param {RunRow[]} runs
 * @param {RunRow} row
 * @param {string} optimizer
 */
export function runsAlike(runs, row, optimizer) {
  const own = markOf(row, optimizer);
  const isAlike = (/** @type {RunRow} */ other) => other.status !== "unreadable" && markOf(other, optimizer) === own;
  return own === undefined ? [] : runs.filter((other) => other.run !== row.run && isAlike(other));
}

/**
 * The frame of one run, with the difference to another run as its values. Samples are paired by the nearest step;
 * steps that the other run has not reached stay empty.
 * @param {Frame} frame
 * @param {Frame} other
 * @param {string} quantity
 * @returns {ComparedFrame} With `values` in decades (or plain differences).
 */
export function differenceFrame(frame, other, quantity) {
  const rows = frame.rows;
  const spans = spansOf(other);
  const there = new Float32Array(frame.values.length).fill(-1);
  frame.steps.forEach((step, column) => {
    const partner = columnAt(spans, (step + frame.lastSteps[column]) / 2);
    if (partner >= 0) there.set(other.values.subarray(partner * rows, (partner + 1) * rows), column * rows);
  });
  const values = frame.values.map((value, i) => difference(value, there[i], quantity));
  return { ...frame, values, here: frame.values, there };
}
