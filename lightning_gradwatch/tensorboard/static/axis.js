/** The axis of steps. */
import { formatStep } from "./format.js";
import { font } from "./labels.js";
import { stepTicks, toX } from "./steps.js";

/**
 * Draw ticks and numbers below a plot.
 * @param {CanvasRenderingContext2D} context
 * @param {{x: number, y: number, width: number}} box
 * @param {{domain: Interval}} model
 * @param {Palette} palette
 */
export function drawSteps(context, box, { domain }, palette) {
  context.font = font();
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillStyle = palette.muted;
  context.strokeStyle = palette.line;
  context.lineWidth = 1;
  for (const [i, tick] of stepTicks(domain, box.width / 90).entries()) {
    const x = Math.round(toX(tick, domain, box)) + 0.5;
    context.beginPath();
    context.moveTo(x, box.y);
    context.lineTo(x, box.y + 4);
    context.stroke();
    const label = `${i ? "" : "step "}${formatStep(tick)}`;
    const width = context.measureText(label).width;
    context.fillText(label, Math.min(Math.max(x - width / 2, box.x), box.x + box.width - width), box.y + 7);
  }
}
