/** What is seen, as a picture and as numbers. */
import { drawAbsent } from "./absent.js";
import { drawSteps } from "./axis.js";
import { NOT_COMPARED } from "./compare.js";
import { contextOf } from "./dom.js";
import { formatSteps } from "./format.js";
import { drawHeatmap } from "./heatmap.js";
import { drawLabels, font, shorten } from "./labels.js";
import { LANE, drawLanes } from "./lanes.js";
import { drawLegend } from "./legend.js";
import { drawProfile, profileAt } from "./profile.js";
import { labelOf, normOf, quantityOf } from "./tables.js";
import { layOut } from "./tree.js";

/** @typedef {{canvas: HTMLCanvasElement, height: number, label: string}} LinePicture A line as it was drawn. */

const MARGIN = 20;
const RATIO = 2;
const NONE = /** @type {Set<number>} */ (new Set());

/**
 * Draw the whole view again on one canvas, with title and labels.
 * @param {Model} model
 * @param {Sizes} sizes
 * @param {LinePicture[]} lines
 * @param {string} headline
 */
function toCanvas(model, sizes, lines, headline) {
  const lanes = model.lanes.length * LANE;
  const width = sizes.gutter + sizes.plot + sizes.side + 2 * MARGIN;
  const height = 64 + sizes.height + 32 + lanes + lines.reduce((sum, line) => sum + line.height + 14, 0) + 2 * MARGIN;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * RATIO, height * RATIO];
  const context = contextOf(canvas);
  context.scale(RATIO, RATIO);
  context.fillStyle = model.palette.surface;
  context.fillRect(0, 0, width, height);
  drawTitle(context, model, headline, width);
  const rows = layOut(model.rows, sizes.height);
  const whole = { ...model, rows, chosen: model.row, alerted: NONE };
  const top = MARGIN + 64;
  const left = MARGIN + sizes.gutter;
  const side = { x: left + sizes.plot + 10, y: top, width: sizes.side - 20, height: sizes.height };
  const box = { x: left, y: top, width: sizes.plot, height: sizes.height };
  drawLabels(context, { ...box, x: MARGIN, width: sizes.gutter }, whole, model.palette);
  drawHeatmap(context, box, whole, model.palette, RATIO);
  drawAbsent(context, box, whole, model.palette);
  drawProfile(context, side, { ...whole, ...profileAt(model) }, model.palette);
  drawLegend(context, { ...side, y: top + sizes.height + 4 }, model, model.palette);
  drawSteps(context, { ...box, y: top + sizes.height }, model, model.palette);
  let y = top + sizes.height + 32;
  drawLanes(context, { ...box, y }, model, model.palette);
  y += lanes;
  for (const line of lines) {
    context.drawImage(line.canvas, MARGIN, y + 14, sizes.gutter + sizes.plot, line.height);
    context.font = font(11, 600);
    context.textAlign = "left";
    context.textBaseline = "top";
    context.fillStyle = model.palette.muted;
    context.fillText(line.label, MARGIN, y + 4);
    y += line.height + 14;
  }
  return canvas;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Model} model
 * @param {string} headline
 * @param {number} width
 */
function drawTitle(context, model, headline, width) {
  const compared = model.compare ? ` compared with ${model.compare}` : "";
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillStyle = model.palette.ink;
  context.font = font(15, 600);
  context.fillText(`${model.run.run}${compared} · ${labelOf(model)}`, MARGIN, MARGIN);
  context.font = font(12);
  context.fillStyle = model.palette.muted;
  const { step, lastStep } = profileAt(model);
  const profile = `profile at ${formatSteps(step, lastStep)}`;
  const below = [headline, profile].filter(Boolean).join("  ·  ");
  context.fillText(shorten(context, below, width - 2 * MARGIN), MARGIN, MARGIN + 24);
}

/** @param {string} text */
const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
/**
 * `NaN`, `Infinity` and `-Infinity` are how JavaScript writes them, too.
 * @param {number} value
 */
const number = (value) => (value === NOT_COMPARED || value === -1 ? "" : String(value));
/** @param {number} value */
const difference = (value) => (value === NOT_COMPARED ? "" : value === -1 ? "-1" : number(value));

/**
 * What a column of a comparison holds; nothing for the values themselves.
 * @param {Model} model
 */
function compared({ run, compare, scale, quantity }) {
  if (!compare || scale.kind !== "difference") return "";
  const isRatio = quantityOf(quantity).scale === "log";
  return isRatio ? ` log10(${run.run} / ${compare})` : ` ${run.run} - ${compare}`;
}

/**
 * The cells that are seen: one line per column of the heatmap, one field per row, in full precision.
 * @param {Model} model
 */
function toCsv(model) {
  const { frame, rows, domain, spans } = model;
  const write = model.compare ? difference : number;
  const what = compared(model);
  const lines = [["step", "last_step", ...rows.map(({ label }) => quoted(label + what))].join(",")];
  for (let column = 0; column < frame.columns; column += 1) {
    if (spans.right[column] <= domain[0] || spans.left[column] >= domain[1]) continue;
    const values = rows.map((_, row) => write(frame.values[column * frame.rows + row]));
    lines.push([frame.steps[column], frame.lastSteps[column], ...values].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

/**
 * Save the picture of a model; the rest as for `toCanvas`.
 * @param {Model} model
 * @param {Sizes} sizes
 * @param {LinePicture[]} lines
 */
export function savePicture(model, sizes, lines) {
  const canvas = toCanvas(model, sizes, lines, model.rowOfRun.headline);
  canvas.toBlob((blob) => blob && save(blob, fileName(model, "png")));
}

/**
 * Save the numbers of a model.
 * @param {Model} model
 */
export function saveNumbers(model) {
  save(new Blob([toCsv(model)], { type: "text/csv" }), fileName(model, "csv"));
}

/**
 * Offer a blob as a file.
 * @param {Blob} blob
 * @param {string} name
 */
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/**
 * A name for the file.
 * @param {Model} model
 * @param {string} extension
 */
function fileName(model, extension) {
  const way = normOf(model.norm)?.after ? [model.norm] : [];
  const parts = [model.run.run, ...versus(model), model.quantity, ...way];
  return `gradwatch-${parts.join("-").replace(/[^\w.-]+/g, "_")}.${extension}`;
}

/** @param {Model} model */
function versus({ compare, quantity }) {
  return compare ? ["vs", compare, quantityOf(quantity).scale === "log" ? "log10_ratio" : "difference"] : [];
}
