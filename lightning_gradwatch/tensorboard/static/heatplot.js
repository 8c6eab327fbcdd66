/** The heatmap that takes the focus and the pointer, with the marks over it. */
import { drawAbsent } from "./absent.js";
import { drawing, h, prepare } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { createCrosshair, listen } from "./plot.js";
import { columnAt, middleOf } from "./steps.js";
import { layOut, rowAt } from "./tree.js";

/** @typedef {{row: PlacedRow, column: number}} Place A cell of the heatmap. */
/**
 * `key` is called with every key, and `point` wherever the pointer goes.
 * @typedef {Pick<Actions, "choose" | "zoom" | "wheel" | "reset"> & {
 *   key(event: KeyboardEvent): void,
 *   point(place: Place|null, event?: MouseEvent): void,
 * }} HeatActions
 */

/**
 * The layer that a click on a row chooses: the chosen one if it is in the row.
 * @param {Model} model
 * @param {Row} row
 */
const layerIn = ({ layers, layer }, row) =>
  row.layers.includes(layers.indexOf(layer)) ? layer : layers[row.layers[0]];

/** @param {HeatActions} actions */
export function createHeatPlot(actions) {
  const heat = drawing("heat");
  const rowMark = h("div", { class: "rowmark", hidden: true });
  const crosshair = createCrosshair();
  const element = h(
    "div",
    {
      class: "plot", tabindex: "0", role: "application", "aria-roledescription": "heatmap",
      "aria-describedby": "gw-cell", onkeydown: actions.key,
    },
    heat, rowMark, ...crosshair.elements,
  );
  /** @type {Model|null} */
  let model = null;
  /** @type {PlacedRow[]} */
  let rows = [];
  /** @type {() => Interval} */
  const domainOf = () => model?.domain ?? [0, 1];

  listen(element, domainOf, {
    hover: (step, y, event) => actions.point(placeAt(step, y), event),
    leave: () => actions.point(null),
    click(step, y) {
      element.focus({ preventScroll: true });
      const place = placeAt(step, y);
      if (!model || !place) return;
      actions.choose({ layer: layerIn(model, place.row), step: model.frame.steps[place.column] });
    },
    zoom: actions.zoom, wheel: actions.wheel, reset: actions.reset,
  });

  /**
   * @param {number} step
   * @param {number} y
   * @returns {Place|null}
   */
  function placeAt(step, y) {
    if (!model) return null;
    const row = rowAt(rows, y);
    const column = columnAt(model.spans, step);
    return row && column >= 0 ? { row, column } : null;
  }

  /**
   * Draw a model; returns its rows with their places, or null if there is no room.
   * @param {Model} next
   */
  function draw(next) {
    model = next;
    element.setAttribute("aria-label", model.label);
    const { context, width, height } = prepare(heat);
    if (!width) return null;
    rows = layOut(model.rows, height);
    const box = { x: 0, y: 0, width, height };
    drawHeatmap(context, box, { ...model, rows }, model.palette, devicePixelRatio || 1);
    drawAbsent(context, box, { ...model, rows }, model.palette);
    [heat.dataset.from, heat.dataset.to] = model.domain.map(String);
    crosshair.choose(middleOf(model.frame, model.column), model.domain, width);
    markRow(rows[model.row]);
    return rows;
  }

  function markRow(/** @type {PlacedRow|undefined} */ row) {
    rowMark.hidden = !row;
    if (!row) return;
    rowMark.style.top = `${row.top}px`;
    rowMark.style.height = `${row.height}px`;
  }

  /** The line at a step that is hovered, here or somewhere else. */
  const hover = (/** @type {number|null} */ step) => crosshair.hover(step, domainOf(), element.clientWidth);
  return { element, heat, draw, hover };
}
