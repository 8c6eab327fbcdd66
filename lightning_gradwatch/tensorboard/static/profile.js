/** The depth profile: the value of every layer at one step, sharing the rows of the heatmap. */
import { MISSING, NONFINITE, ZERO, between, css } from "./colours.js";
import { THIN, drawSpread, shared, thinned } from "./spread.js";

/** @typedef {[x: number, y: number]} Point */
/**
 * What is drawn: rows with the cells of their layers, `chosen` among them, and the profiles of other runs.
 * @typedef {Object} Drawn
 * @property {PlacedRow[]} rows
 * @property {Float32Array} cells
 * @property {Float32Array} [lows]
 * @property {Float32Array} [medians]
 * @property {number} chosen
 * @property {Overlay[]} overlays
 * @property {Scale} scale
 * @property {Rgb[]} stops
 */

/**
 * The profile of a column, or that of the sample at the cursor.
 * @param {Model} model
 * @param {number|null} column Null for the cursor.
 * @returns {Profile}
 */
export function profileAt({ frame, cells, exact, column: chosen }, column = null) {
  if (column === null && exact) return exact;
  const place = column ?? chosen;
  const own = cells.subarray(place * frame.rows, (place + 1) * frame.rows);
  return { step: frame.steps[place], lastStep: frame.lastSteps[place], cells: own };
}

/**
 * Vertical place of a layer: the middle of its row.
 * @param {Placed} row
 * @param {Box} box
 */
const middleOf = (row, box) => box.y + row.top + row.height / 2;

/**
 * Where a cell lies: zeros at the left edge, NaN at the right, nothing for "no data".
 * @param {number} cell
 * @param {Box} box
 */
function placeOf(cell, box) {
  if (cell === MISSING) return null;
  if (cell === ZERO) return box.x;
  return box.x + (cell === NONFINITE ? 1 : cell) * box.width;
}

/** @type {(x: number, y: number) => Point} */
const pointOf = (x, y) => [x, y];

/**
 * A line through the points of consecutive layers, with gaps where there is no number.
 * @param {CanvasRenderingContext2D} context
 * @param {(Point|null)[]} points
 */
function strokeLine(context, points) {
  context.beginPath();
  let isOpen = false;
  for (const point of points) {
    if (point && isOpen) context.lineTo(...point);
    else if (point) context.moveTo(...point);
    isOpen = Boolean(point);
  }
  context.stroke();
}

/** Widths of the box beyond which nothing is drawn: what is off the axis leaves it at its true slope. */
const FAR = 20;
/** Pixels between the marks of layers that lie off the axis. */
const APART = 12;

/**
 * The rows of another run with the same layers; off the axis where their values are.
 * @param {Overlay} overlay
 * @param {PlacedRow[]} rows
 * @param {Box} box
 * @returns {(Point|null)[]}
 */
function overlayPoints(overlay, rows, box) {
  return Array.from(overlay.cells, (cell, i) => {
    if (Number.isNaN(cell)) return null;
    return pointOf(box.x + Math.min(Math.max(cell, -FAR), FAR) * box.width, middleOf(rows[i], box));
  });
}

/**
 * Draw the profile of another run, with arrows at the edge where it has left the axis.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Overlay} overlay
 * @param {(Point|null)[]} points
 */
function drawOverlay(context, box, { colour, dash }, points) {
  context.save();
  context.beginPath();
  context.rect(box.x, box.y, box.width, box.height);
  context.clip();
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.setLineDash(dash);
  strokeLine(context, points);
  context.restore();
  context.fillStyle = colour;
  let last = -Infinity;
  for (const point of points) {
    if (!point || (point[0] >= box.x && point[0] <= box.x + box.width) || point[1] < last + APART) continue;
    last = point[1];
    const [edge, towards] = point[0] < box.x ? [box.x, -1] : [box.x + box.width, 1];
    context.beginPath();
    context.moveTo(edge + 7 * towards, last);
    context.lineTo(edge + towards, last - 4);
    context.lineTo(edge + towards, last + 4);
    context.fill();
  }
}

/**
 * Draw the profile into a box.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Drawn} drawn
 * @param {Palette} palette
 */
export function drawProfile(context, box, drawn, palette) {
  const { rows, cells, scale, stops, chosen, overlays } = drawn;
  drawGrid(context, box, scale, palette);
  context.lineJoin = "round";
  for (const overlay of overlays) drawOverlay(context, box, overlay, overlayPoints(overlay, rows, box));
  // a point for each of thousands of rows would be a comb: the line then goes through the medians of bands
  const isThin = rows.length > 0 && rows[0].height < THIN;
  const bands = isThin ? thinned(rows, cells) : shared(rows, drawn);
  drawSpread(context, box, bands, palette);
  const own = [...cells];
  const ofRows = own.map((cell, i) => (cell < 0 ? null : pointOf(box.x + cell * box.width, middleOf(rows[i], box))));
  const ofBands = bands.map((band) => pointOf(box.x + band.middle * box.width, middleOf(band, box)));
  context.strokeStyle = palette.ink;
  context.lineWidth = 2;
  strokeLine(context, isThin ? ofBands : ofRows);
  own.forEach((cell, i) => {
    const isChosen = i === chosen;
    if (isThin && !isChosen && cell !== NONFINITE) return;
    drawPoint(context, box, rows[i], cell, { stops, isChosen }, palette);
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Scale} scale
 * @param {Palette} palette
 */
function drawGrid(context, box, scale, palette) {
  context.strokeStyle = palette.grid;
  context.lineWidth = 1;
  for (const [position] of scale.ticks) {
    const x = Math.round(box.x + position * box.width) + 0.5;
    context.beginPath();
    context.moveTo(x, box.y);
    context.lineTo(x, box.y + box.height);
    context.stroke();
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Placed} row
 * @param {number} cell
 * @param {{stops: Rgb[], isChosen: boolean}} how
 * @param {Palette} palette
 */
function drawPoint(context, box, row, cell, { stops, isChosen }, palette) {
  const x = placeOf(cell, box);
  if (x === null) return;
  const radius = Math.min(Math.max(row.height / 4, 1.2), 4) + (isChosen ? 2 : 0);
  const y = middleOf(row, box);
  context.beginPath();
  if (cell === NONFINITE) {
    context.fillStyle = palette.alert;
    context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    return;
  }
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = cell === ZERO ? palette.surface : css(between(stops, cell));
  context.fill();
  if (row.height < 6 && !isChosen) return;
  context.strokeStyle = isChosen ? palette.accent : palette.ink;
  context.lineWidth = isChosen ? 2 : 1;
  context.stroke();
}
