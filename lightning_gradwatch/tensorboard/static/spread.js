/** How far layers differ that share a row of the profile, or rows that are too thin to be told apart. */
import { ZERO } from "./colours.js";

/** Rows thinner than this share a band, as high as this. */
export const THIN = 4;

/** @typedef {Placed & {low: number, middle: number, high: number}} Band Places on the scale, of some of the height. */

/**
 * Places on the scale of cells that have one, rising.
 * @param {Float32Array} cells
 */
const placesOf = (cells) => cells.map((cell) => (cell === ZERO ? 0 : cell)).filter((cell) => cell >= 0).sort();

/**
 * Thin rows as bands: a readable line, however many layers there are.
 * @param {PlacedRow[]} rows
 * @param {Float32Array} cells
 * @returns {Band[]}
 */
export function thinned(rows, cells) {
  const found = /** @type {Band[]} */ ([]);
  for (let start = 0; start < rows.length;) {
    let end = start + 1;
    while (end < rows.length && rows[end].top - rows[start].top < THIN) end += 1;
    const places = placesOf(cells.subarray(start, end));
    const { top } = rows[start];
    const height = rows[end - 1].top + rows[end - 1].height - top;
    if (places.length) {
      const [low, middle, high] = [0, places.length >> 1, places.length - 1].map((place) => places[place]);
      found.push({ top, height, low, middle, high });
    }
    start = end;
  }
  return found;
}

/**
 * The rows that several layers share.
 * @param {PlacedRow[]} rows
 * @param {{cells: Float32Array, lows?: Float32Array, medians?: Float32Array}} profile
 * @returns {Band[]}
 */
export function shared(rows, { cells, lows, medians }) {
  if (!lows || !medians) return [];
  return rows.flatMap(({ index, layers, top, height }) => {
    const [low, middle, high] = placesOf(Float32Array.of(lows[index], medians[index], cells[index]));
    const size = Math.min(0.5 * height, 8);
    const band = { top: top + (height - size) / 2, height: size, low, middle, high };
    return layers.length > 1 && high !== undefined ? [band] : [];
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Band[]} bands
 * @param {Palette} palette
 */
export function drawSpread(context, box, bands, palette) {
  context.fillStyle = palette.line;
  for (const { top, height, low, high } of bands) {
    context.fillRect(box.x + low * box.width, box.y + top, Math.max((high - low) * box.width, 1), height);
  }
  context.fillStyle = palette.muted;
  for (const { top, height, middle } of bands) {
    if (height > THIN) context.fillRect(box.x + middle * box.width - 1, box.y + top, 2, height);
  }
}
