/** From values to colours: perceptually even, readable for colour-blind people, with patterns for what is no number. */
import { viridis } from "./tables.js";

/** Blue for less, orange for more, which all common kinds of colour blindness tell apart. */
const LESS = /** @type {Rgb[]} */ ([[17, 66, 138], [88, 142, 206]]);
const MORE = /** @type {Rgb[]} */ ([[222, 140, 58], [148, 62, 0]]);

/** Cells that are no position on the scale. */
export const MISSING = -1;
export const ZERO = -2;
export const NONFINITE = -3;

/**
 * A colour for ImageData on a little-endian machine.
 * @param {Rgb} colour
 */
export const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/**
 * @param {string} hex
 * @param {number} place
 */
const byteAt = (hex, place) => parseInt(hex.trim().slice(place, place + 2), 16);

/**
 * `#rrggbb` as three numbers.
 * @param {string} hex
 * @returns {Rgb}
 */
export const parse = (hex) => [byteAt(hex, 1), byteAt(hex, 3), byteAt(hex, 5)];

/**
 * The colour at `position` in [0, 1] between even `stops`, as three bytes.
 * @param {Rgb[]} stops
 * @param {number} position
 * @returns {Rgb}
 */
export function between(stops, position) {
  const place = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const share = place - index;
  const [here, next] = [stops[index], stops[index + 1]];
  const mixed = (/** @type {number} */ i) => Math.round(here[i] + share * (next[i] - here[i]));
  return [mixed(0), mixed(1), mixed(2)];
}

/**
 * The stops of a map: viridis, or one that runs through a neutral `middle`.
 * @param {boolean} isDiverging
 * @param {Rgb} [middle]
 * @returns {Rgb[]}
 */
export const stopsOf = (isDiverging, middle = [0, 0, 0]) => (isDiverging ? [...LESS, middle, ...MORE] : viridis());

/**
 * 256 packed colours of a map.
 * @param {Rgb[]} stops
 */
export function lookup(stops) {
  return Uint32Array.from({ length: 256 }, (_, i) => pack(between(stops, i / 255)));
}

/**
 * A colour for CSS.
 * @param {Rgb} colour
 */
export const css = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;
