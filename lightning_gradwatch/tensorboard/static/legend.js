/** The axis of the profile, which is the legend of the heatmap: colours with their numbers. */
import { between, css } from "./colours.js";
import { font } from "./labels.js";

/** Pixels between numbers of the legend. */
const GAP = 5;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {{x: number, y: number, width: number}} box
 * @param {{scale: Scale, stops: Rgb[]}} model
 * @param {Palette} palette
 */
export function drawLegend(context, box, { scale, stops }, palette) {
  const gradient = context.createLinearGradient(box.x, 0, box.x + box.width, 0);
  for (let i = 0; i <= 32; i += 1) gradient.addColorStop(i / 32, css(between(stops, i / 32)));
  context.fillStyle = gradient;
  context.fillRect(box.x, box.y, box.width, 8);
  context.font = font();
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillStyle = palette.muted;
  for (const { x, label } of labelsOf(context, box, scale)) context.fillText(label, x, box.y + 13);
}

/**
 * Numbers of the legend with their left ends: those at its ends, and of the others as many as there is room for.
 * @param {CanvasRenderingContext2D} context With the font that they are written in.
 * @param {{x: number, width: number}} box
 * @param {Scale} scale
 */
export function labelsOf(context, box, { ticks }) {
  const [first, last] = [Math.min, Math.max].map((most) => most(...ticks.map(([position]) => position)));
  const isEnd = (/** @type {number} */ position) => position === first || position === last;
  const found = /** @type {{x: number, width: number, label: string}[]} */ ([]);
  for (const [position, label] of [...ticks].sort(([a], [b]) => Number(isEnd(b)) - Number(isEnd(a)))) {
    const { width } = context.measureText(label);
    const middle = box.x + position * box.width - width / 2;
    const x = Math.min(Math.max(middle, box.x), box.x + box.width - width);
    const isFree = found.every((other) => x > other.x + other.width + GAP || x + width + GAP < other.x);
    if (isFree) found.push({ x, width, label });
  }
  return found;
}
