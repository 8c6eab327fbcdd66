/** Alert lanes: one lane per kind, from the step at which an alert opened to the step at which it ended. */
import { formatStep } from "./format.js";
import { font } from "./labels.js";
import { toX } from "./steps.js";
import { kindOf } from "./tables.js";

/** @typedef {{x: number, y: number, width: number}} LaneBox As high as there are lanes. */

/** Height of a lane. */
export const LANE = 18;

/**
 * The lanes of alerts, in the order in which the kinds first appear.
 * @param {Alert[]} alerts
 * @returns {Lane[]}
 */
export function lanesOf(alerts) {
  const lanes = /** @type {Map<string, Alert[]>} */ (new Map());
  for (const alert of alerts) lanes.set(alert.kind, [...(lanes.get(alert.kind) ?? []), alert]);
  return [...lanes].map(([kind, own]) => ({ kind, alerts: own }));
}

/**
 * The alert under a point of the lanes.
 * @param {Lane[]} lanes
 * @param {number} x
 * @param {number} y
 * @param {Interval} domain
 * @param {LaneBox} box
 */
export function alertAt(lanes, x, y, domain, box) {
  const lane = lanes[Math.floor((y - box.y) / LANE)];
  return lane?.alerts.findLast((alert) => {
    const [from, to] = ends(alert, domain, box);
    return x >= from - 2 && x <= to + 2;
  });
}

/**
 * @param {Alert} alert
 * @param {Interval} domain
 * @param {LaneBox} box
 * @returns {Interval}
 */
function ends({ step, until_step: until }, domain, box) {
  const from = Math.max(toX(step, domain, box), box.x);
  const to = until === null ? box.x + box.width : Math.min(toX(until, domain, box), box.x + box.width);
  return [from, Math.max(to, from + 4)];
}

/**
 * Draw lanes with their names in the gutter to the left.
 * @param {CanvasRenderingContext2D} context
 * @param {LaneBox} box
 * @param {{lanes: Lane[], domain: Interval}} model
 * @param {Palette} palette
 */
export function drawLanes(context, box, { lanes, domain }, palette) {
  context.textBaseline = "middle";
  lanes.forEach((lane, i) => {
    const y = box.y + i * LANE;
    context.font = font();
    context.textAlign = "right";
    context.fillStyle = palette.muted;
    context.fillText(kindOf(lane.kind).label, box.x - 14, y + LANE / 2);
    context.fillStyle = palette.grid;
    context.fillRect(box.x, y + LANE / 2 - 0.5, box.width, 1);
    for (const alert of lane.alerts) drawAlert(context, box, y, alert, domain, palette);
  });
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {LaneBox} box
 * @param {number} y
 * @param {Alert} alert
 * @param {Interval} domain
 * @param {Palette} palette
 */
function drawAlert(context, box, y, alert, domain, palette) {
  if (alert.step > domain[1] || (alert.until_step !== null && alert.until_step < domain[0])) return;
  const [from, to] = ends(alert, domain, box);
  const isOpen = alert.until_step === null;
  context.fillStyle = alert.level === "alert" ? palette.alert : palette.notice;
  context.globalAlpha = isOpen ? 1 : 0.45;
  context.beginPath();
  context.roundRect(from, y + 3, to - from, LANE - 6, 3);
  context.fill();
  context.globalAlpha = 1;
  const text = `${alert.layer ? `${alert.layer}, ` : ""}${isOpen ? "since" : "from"} step ${formatStep(alert.step)}`;
  context.font = font(10, 500);
  if (!isOpen || context.measureText(text).width > to - from - 12) return;
  context.textAlign = "left";
  context.fillStyle = alert.level === "alert" ? palette.onAlert : palette.onNotice;
  context.fillText(text, from + 6, y + LANE / 2 + 0.5);
}
