/** The distribution of log10|g| of one layer over time. */
import { between, pack } from "./colours.js";
import { contextOf } from "./dom.js";
import { formatDecade } from "./format.js";
import { font } from "./labels.js";
import { columnsOfPixels, spansOf } from "./steps.js";

/**
 * The bins that hold anything, with half a decade on either side: `[first, end)`.
 * @param {HistogramFrame} frame
 * @returns {Interval}
 */
export function usedBins({ values, columns, rows, bins_per_decade: perDecade }) {
  let [first, last] = [rows, -1];
  for (let i = 0; i < columns * rows; i += 1) {
    if (!values[i]) continue;
    first = Math.min(first, i % rows);
    last = Math.max(last, i % rows);
  }
  return last < 0 ? [0, rows] : [first - perDecade / 2, last + 1 + perDecade / 2];
}

/**
 * @param {HistogramFrame} frame
 * @param {number} column
 * @param {number} bin
 */
const shareOf = ({ values, rows }, column, bin) => (bin >= 0 && bin < rows ? values[column * rows + bin] : 0);

/**
 * Draw the distribution into a box: large gradients on top, the more of them the stronger the colour.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {{frame: HistogramFrame, domain: Interval, bins: Interval}} model
 * @param {Palette} palette
 * @param {number} ratio
 */
export function drawDistribution(context, box, { frame, domain, bins }, palette, ratio = 1) {
  const [width, height] = [Math.round(box.width * ratio), bins[1] - bins[0]];
  if (width < 1 || height < 1) return;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const columns = columnsOfPixels(frame, spansOf(frame), domain, width);
  const most = frame.values.reduce((a, b) => Math.max(a, b), 1);
  const shades = Uint32Array.from({ length: most + 1 }, (_, i) => pack(between(palette.density, i / most)));
  for (let x = 0; x < width; x += 1) {
    const column = columns.last[x];
    if (column < 0) continue;
    for (let y = 0; y < height; y += 1) {
      pixels[y * width + x] = shades[shareOf(frame, column, bins[1] - 1 - y)];
    }
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  contextOf(canvas).putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, box.x, box.y, box.width, box.height);
}

/**
 * The decades beside the distribution.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {{frame: HistogramFrame, bins: Interval}} model
 * @param {Palette} palette
 */
export function drawDecades(context, box, { frame, bins }, palette) {
  const { lowest, bins_per_decade: perDecade } = frame;
  const [low, high] = bins.map((bin) => lowest + bin / perDecade);
  const stride = Math.max(1, Math.ceil(((high - low) * 22) / box.height));
  context.font = font();
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.fillStyle = palette.muted;
  for (let decade = Math.ceil(low / stride) * stride; decade <= high; decade += stride) {
    const y = box.y + ((high - decade) / (high - low)) * box.height;
    if (y > box.y + 6 && y < box.y + box.height - 6) context.fillText(formatDecade(decade), box.x + box.width - 14, y);
  }
}
