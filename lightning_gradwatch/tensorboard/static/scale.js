/** From values to positions on a colour scale. */
import { MISSING, NONFINITE, ZERO } from "./colours.js";
import { NOT_COMPARED } from "./compare.js";
import { formatDecade, formatNumber } from "./format.js";
import { leastDecades, quantityOf } from "./tables.js";

/**
 * The smallest positive and the largest finite number: of all layers where the server tells, whatever rows they share.
 * @param {Frame} frame
 */
function extentOf({ values, extent }) {
  if (extent?.length) return extent;
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value > 0 && value < low) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return [low, high];
}

/**
 * @param {number[]} extent
 * @returns {Scale}
 */
function logScale([low, high]) {
  const isEmpty = !(high > 0);
  const top = isEmpty ? 0 : Math.ceil(Math.log10(high) - 1e-9);
  const bottom = Math.min(isEmpty ? top : Math.floor(Math.log10(low) + 1e-9), top - leastDecades());
  const ticks = decadeTicks(bottom, top);
  return {
    kind: "log",
    low: bottom,
    high: top,
    position: (value) => (value === 0 ? ZERO : (Math.log10(value) - bottom) / (top - bottom)),
    ticks: ticks.map((decade) => [(decade - bottom) / (top - bottom), formatDecade(decade)]),
  };
}

/**
 * @param {number} bottom
 * @param {number} top
 */
function decadeTicks(bottom, top) {
  const stride = [1, 2, 3, 4, 5, 8, 10, 20].find((size) => (top - bottom) / size <= 5) ?? 20;
  const ticks = [];
  for (let decade = top; decade >= bottom; decade -= stride) ticks.push(decade);
  return ticks;
}

/**
 * @param {number[]} extent
 * @param {boolean} isFraction
 * @returns {Scale}
 */
function linearScale([, largest], isFraction) {
  const high = isFraction ? 1 : Math.max(largest, 1);
  const label = (/** @type {number} */ value) => (isFraction ? `${100 * value} %` : formatNumber(value, 2));
  return {
    kind: isFraction ? "fraction" : "linear",
    low: 0,
    high,
    position: (value) => value / high,
    ticks: [0, 0.5, 1].map((share) => [share, label(share * high)]),
  };
}

/**
 * The scale of a quantity over the values of a run: decades, or from 0 to the largest.
 * @param {string} quantity
 * @param {Frame} frame
 */
export function scaleOf(quantity, frame) {
  const { scale } = quantityOf(quantity);
  const extent = extentOf(frame);
  return scale === "log" ? logScale(extent) : linearScale(extent, scale === "fraction");
}

/**
 * The scale of a difference, even on both sides of 0: decades of a ratio, or percentage points.
 * @param {string} quantity
 * @param {Float32Array} differences
 * @returns {Scale}
 */
export function differenceScale(quantity, differences) {
  const { scale } = quantityOf(quantity);
  let most = scale === "log" ? 1 : 0;
  for (const value of differences) {
    const size = Math.abs(value);
    if (size > most && size < NOT_COMPARED) most = size;
  }
  const reach = scale === "log" ? Math.ceil(most - 1e-9) : most || 1;
  const label = (/** @type {number} */ value) => {
    if (value === 0) return scale === "log" ? "same" : "0";
    return scale === "log" ? `×${formatDecade(value)}` : formatNumber(scale === "fraction" ? 100 * value : value, 2);
  };
  return {
    kind: "difference",
    low: -reach,
    high: reach,
    position: (value) => (value + reach) / (2 * reach),
    ticks: [-reach, 0, reach].map((value) => [(value + reach) / (2 * reach), label(value)]),
  };
}

/**
 * Positions of values, with -1 and the non-finite as codes. Shape as `values`.
 * @param {Float32Array} values
 * @param {Scale} scale
 */
export function toCells(values, scale) {
  const cells = new Float32Array(values.length);
  const isDifference = scale.kind === "difference";
  for (let i = 0; i < values.length; i += 1) cells[i] = toCell(values[i], scale, isDifference);
  return cells;
}

/**
 * @param {number} value
 * @param {Scale} scale
 * @param {boolean} isDifference
 */
function toCell(value, scale, isDifference) {
  if (isDifference ? Number.isNaN(value) : !Number.isFinite(value)) return NONFINITE;
  if (value === (isDifference ? NOT_COMPARED : MISSING)) return MISSING;
  const position = scale.position(value);
  return position === ZERO ? ZERO : Math.min(Math.max(position, 0), 1);
}
