/** Numbers and sentences as text. */
import { quantityOf } from "./tables.js";

const DIGITS = 4;

/**
 * A number with four significant digits.
 * @param {number} value
 * @param {number} digits
 */
export function formatNumber(value, digits = DIGITS) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Inf" : "-Inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(digits)));
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

/**
 * A value of a quantity, with its unit.
 * @param {number} value
 * @param {string} quantity
 */
export function formatValue(value, quantity) {
  const { scale, unit, missing } = quantityOf(quantity);
  if (value < 0) return missing;
  if (!Number.isFinite(value)) return formatNumber(value);
  if (scale === "fraction") return `${formatNumber(100 * value)} %`;
  if (value === 0 && scale === "log") return "exactly 0";
  return formatNumber(value) + (unit ? ` ${unit}` : "");
}

/**
 * A whole number with narrow spaces between thousands.
 * @param {number} step
 */
export function formatStep(step) {
  return String(Math.round(step)).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

/**
 * A power of ten for a tick.
 * @param {number} exponent
 */
export function formatDecade(exponent) {
  if (exponent >= -2 && exponent <= 3) return String(Number((10 ** exponent).toPrecision(1)));
  return `1e${exponent}`;
}

/**
 * What a line is called: a scalar by its tag, a number of every step by its own name.
 * @param {string} tag
 */
export function lineName(tag) {
  const [, optimizer, name] = /^gradwatch\/(?:(.+)\/)?steps\/([^/]+)$/.exec(tag) ?? [];
  if (!name) return tag;
  return `${name.replaceAll("_", " ")}${optimizer ? ` of ${optimizer}` : ""}, every step`;
}

/**
 * "step 20", or "steps 20 to 40" for samples that share a cell.
 * @param {number} first
 * @param {number} last
 */
export function formatSteps(first, last) {
  return first === last ? `step ${formatStep(first)}` : `steps ${formatStep(first)} to ${formatStep(last)}`;
}

const AGES = /** @type {[number, string][]} */ ([[86400, "d"], [3600, "h"], [60, "min"]]);

/**
 * How long ago something was.
 * @param {number} seconds
 */
export function formatAge(seconds) {
  const [size, unit] = AGES.find(([least]) => seconds >= least) ?? [0, ""];
  return size ? `${Math.floor(seconds / size)} ${unit} ago` : "just now";
}

/**
 * With a large first letter.
 * @param {string} [text]
 */
export const capital = (text = "") => text.charAt(0).toUpperCase() + text.slice(1);
