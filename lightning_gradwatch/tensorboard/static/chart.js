/** The panel in the middle: names, heatmap, profile and lanes, which share rows or steps. */
import { drawSteps } from "./axis.js";
import { describe } from "./describe.js";
import { drawing, h, prepare } from "./dom.js";
import { createGutter } from "./gutter.js";
import { createHeatPlot } from "./heatplot.js";
import { createKey } from "./key.js";
import { createLaneBox } from "./lanebox.js";
import { LANE } from "./lanes.js";
import { createSide } from "./side.js";
import { middleOf } from "./steps.js";

/** @typedef {import("./heatplot.js").Place} Place */

/**
 * Height of the heatmap: twenty pixels a row, within what the eye takes in at once. As many rows as the server proposes
 * at most have room for their names, and every row has a pixel.
 * @param {number} rows
 */
const heightFor = (rows) => Math.max(Math.min(Math.max(rows * 20, 220), 460), Math.min(rows * 14, 740), rows);

/** @param {PageActions & {key(event: KeyboardEvent): void}} actions */
export function createChart(actions) {
  const gutter = createGutter(actions);
  const plot = createHeatPlot({ ...actions, point });
  const side = createSide();
  const lanes = createLaneBox(actions);
  const key = createKey();
  const steps = drawing("steps");
  const element = h(
    "div",
    { class: "grid" },
    h("div", { class: "corner", text: "input side" }), h("div", { class: "spacer" }), side.title,
    gutter.element, plot.element, h("div", { class: "side" }, side.profile),
    h("div", { class: "ends" }, h("span", { text: "loss side" })), steps, side.legend,
    h("div", { class: "lanes-box" }, lanes.element, key.element), side.overlays,
  );
  /** @type {Model|null} */
  let model = null;
  /**
   * With their places.
   * @type {PlacedRow[]}
   */
  let rows = [];
  /**
   * The column under the pointer.
   * @type {number|null}
   */
  let hovered = null;

  /**
   * The pointer is over a cell, or over none.
   * @param {Place|null} place
   * @param {MouseEvent} [event]
   */
  function point(place, event) {
    if (model && place && event) {
      const { name, when, label, value, notes } = describe(model, place.row, place.column);
      actions.tooltip.show(event, name, [`${when} · ${label} ${value}`, ...notes]);
    } else actions.tooltip.hide();
    const column = place?.column ?? null;
    if (column === hovered) return;
    hovered = column;
    actions.hover(model && column !== null ? middleOf(model.frame, column) : null);
    drawSide();
  }

  function drawSide() {
    if (model) side.draw(model, rows, hovered);
  }

  /**
   * Draw a model; returns whether there is room for it.
   * @param {Model} next
   */
  function update(next) {
    model = next;
    if (hovered !== null && hovered >= model.frame.columns) hovered = null;
    element.style.setProperty("--height", `${heightFor(model.rows.length)}px`);
    element.style.setProperty("--lanes", `${model.lanes.length ? model.lanes.length * LANE + 8 : 0}px`);
    const drawn = plot.draw(model);
    if (!drawn) return false;
    rows = drawn;
    gutter.draw(model, rows);
    key.update();
    const { context, width } = prepare(steps);
    drawSteps(context, { x: 0, y: 0, width }, model, model.palette);
    lanes.draw(model, { x: gutter.element.clientWidth, y: 4, width: plot.element.clientWidth });
    drawSide();
    return true;
  }

  /** @type {() => Sizes} */
  const boxes = () => ({
    gutter: gutter.element.clientWidth,
    plot: plot.element.clientWidth,
    side: side.profile.clientWidth,
    height: plot.heat.clientHeight,
  });
  return { element, plot: plot.element, update, hover: plot.hover, redrawSide: drawSide, boxes };
}
