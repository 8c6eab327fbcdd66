/** Layers that have no such number in the whole run: a plain row that says why, so that nothing looks lost. */
import { font } from "./labels.js";
import { quantityOf } from "./tables.js";

/** Rows together lower than this have no room for words. */
const LEAST = 13;

/**
 * Whether a row holds nothing at all.
 * @param {Frame} frame
 * @param {number} row
 */
function isAbsent({ values, rows, columns }, row) {
  for (let column = 0; column < columns; column += 1) if (values[column * rows + row] !== -1) return false;
  return columns > 0;
}

/**
 * Neighbouring rows without a number, as boxes from top to bottom.
 * @param {Frame} frame
 * @param {PlacedRow[]} rows
 */
function stretchesOf(frame, rows) {
  const found = /** @type {Placed[]} */ ([]);
  let wasAbsent = false;
  for (const { index, top, height } of rows) {
    const isNow = isAbsent(frame, index);
    if (isNow && wasAbsent) found[found.length - 1].height += height;
    else if (isNow) found.push({ top, height });
    wasAbsent = isNow;
  }
  return found;
}

/**
 * Draw over the rows of a heatmap that hold nothing.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box That of the heatmap.
 * @param {Pick<Model, "overview" | "compare" | "quantity"> & {rows: PlacedRow[]}} model
 * @param {Palette} palette
 */
export function drawAbsent(context, box, { overview, compare, quantity, rows }, palette) {
  if (compare) return;
  context.font = font(11);
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const { top, height } of stretchesOf(overview, rows)) {
    context.fillStyle = palette.surface;
    context.fillRect(box.x, box.y + top, box.width, height);
    if (height < LEAST) continue;
    context.fillStyle = palette.muted;
    context.fillText(quantityOf(quantity).missing, box.x + box.width / 2, box.y + top + height / 2);
  }
}
