/** The heatmap: one pass over the pixels of an image, whatever the number of cells. */
import { MISSING, NONFINITE, ZERO } from "./colours.js";
import { contextOf } from "./dom.js";
import { columnsOfPixels } from "./steps.js";

/** @typedef {{index: number, from: number, to: number}} PixelRow A row of cells, from one row of pixels to another. */

/**
 * What stands for several cells: a NaN wins, then the largest value; so no spike and no NaN is lost.
 * @param {number} a
 * @param {number} b
 */
function merge(a, b) {
  if (a === NONFINITE || b === NONFINITE) return NONFINITE;
  if (a === MISSING) return b;
  if (b === MISSING) return a;
  return Math.max(a, b);
}

/**
 * @param {Float32Array} cells
 * @param {number} height
 * @param {number} columnFirst
 * @param {number} columnLast
 * @param {number} row
 */
function mergedCell(cells, height, columnFirst, columnLast, row) {
  if (columnFirst < 0) return MISSING;
  let cell = MISSING;
  for (let column = columnFirst; column <= columnLast; column += 1) {
    cell = merge(cell, cells[column * height + row]);
  }
  return cell;
}

/**
 * Base colour and pattern of the cells that are no number: readable without telling colours apart.
 * @param {number} cell
 * @param {number} x
 * @param {number} y
 * @param {Palette} palette
 */
function special(cell, x, y, palette) {
  const [base, mark] = cell === NONFINITE ? palette.nonfinite : cell === ZERO ? palette.zero : palette.missing;
  if (cell === ZERO) return x % 4 === 0 && y % 4 === (x % 8 ? 0 : 2) ? mark : base;
  return (cell === NONFINITE ? (x + y) % 8 < 2 : (x - y + 80000) % 8 === 0) ? mark : base;
}

/** A NaN that is smaller than this many pixels is drawn as large as that. */
const SPECK = 3;

/**
 * Where single NaNs are too small to be seen.
 * @param {Float32Array} line
 * @param {PixelRow} row
 * @param {number} width
 */
function specksOf(line, row, width) {
  const found = /** @type {[x: number, y: number][]} */ ([]);
  const isBad = (/** @type {number} */ x) => line[x] === NONFINITE;
  for (let x = 0; x < width; x += 1) {
    if (isBad(x) && (row.to - row.from < SPECK || !(isBad(x - 1) || isBad(x + 1)))) found.push([x, row.from]);
  }
  return found;
}

/**
 * @param {Uint32Array} pixels
 * @param {number} width
 * @param {[x: number, y: number][]} specks
 * @param {number} colour
 */
function stamp(pixels, width, specks, colour) {
  const half = SPECK >> 1;
  for (const [x, y] of specks) {
    for (let row = Math.max(y - half, 0); row <= y + half; row += 1) {
      const end = Math.min((row + 1) * width, row * width + x + half + 1, pixels.length);
      pixels.fill(colour, row * width + Math.max(x - half, 0), Math.max(end, 0));
    }
  }
}

/**
 * Paint rows of cells into the pixels of an image.
 * @param {Uint32Array} pixels `width * height`, filled here.
 * @param {number} width
 * @param {{cells: Float32Array, height: number}} grid
 * @param {{first: Int32Array, last: Int32Array}} columns The cells of each pixel column.
 * @param {PixelRow[]} rows
 * @param {Uint32Array} lookup
 * @param {Palette} palette
 * @param {number} dot Device pixels per CSS pixel, for patterns of even size.
 */
function paint(pixels, width, { cells, height }, columns, rows, lookup, palette, dot = 1) {
  const line = new Float32Array(width);
  const specks = /** @type {[x: number, y: number][]} */ ([]);
  for (const row of rows) {
    for (let x = 0; x < width; x += 1) {
      line[x] = mergedCell(cells, height, columns.first[x], columns.last[x], row.index);
    }
    specks.push(...specksOf(line, row, width));
    paintRow(pixels, width, line, row, lookup, palette, dot);
  }
  stamp(pixels, width, specks, palette.nonfinite[0]);
}

/**
 * @param {Uint32Array} pixels
 * @param {number} width
 * @param {Float32Array} line
 * @param {PixelRow} row
 * @param {Uint32Array} lookup
 * @param {Palette} palette
 * @param {number} dot
 */
function paintRow(pixels, width, line, row, lookup, palette, dot) {
  const isPlain = line.every((cell) => cell >= 0);
  const first = row.from * width;
  for (let y = row.from; y < row.to; y += 1) {
    const start = y * width;
    if (isPlain && y > row.from) {
      pixels.copyWithin(start, first, first + width);
      continue;
    }
    for (let x = 0; x < width; x += 1) {
      const cell = line[x];
      pixels[start + x] = cell < 0
        ? special(cell, Math.floor(x / dot), Math.floor(y / dot), palette)
        : lookup[Math.round(cell * 255)];
    }
  }
}

/**
 * Draw the heatmap into a box.
 * @param {CanvasRenderingContext2D} context Scaled by `ratio`.
 * @param {Box} box In CSS pixels.
 * @param {Picture & {rows: ({index: number} & Placed)[]}} model
 * @param {Palette} palette
 * @param {number} ratio
 */
export function drawHeatmap(context, box, model, palette, ratio = 1) {
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (width < 1 || height < 1) return;
  const image = new ImageData(width, height);
  const rows = model.rows.map((row) => ({
    ...row,
    from: Math.round(row.top * ratio),
    to: Math.min(Math.round((row.top + row.height) * ratio), height),
  }));
  const columns = columnsOfPixels(model.frame, model.spans, model.domain, width);
  const grid = { cells: model.cells, height: model.frame.rows };
  paint(new Uint32Array(image.data.buffer), width, grid, columns, rows, model.lookup, palette, ratio);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  contextOf(canvas).putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, box.x, box.y, box.width, box.height);
}
