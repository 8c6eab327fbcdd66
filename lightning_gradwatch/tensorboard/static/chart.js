/** The panel in the middle: heatmap, profile and lanes, which share rows or steps. */
import { drawSteps } from "./axis.js";
import { css } from "./colours.js";
import { describe } from "./describe.js";
import { h, prepare } from "./dom.js";
import { formatSteps, formatStep } from "./format.js";
import { drawHeatmap } from "./heatmap.js";
import { createKey } from "./key.js";
import { LEVEL, brackets, drawLabels, levelsOf } from "./labels.js";
import { LANE, alertAt, drawLanes } from "./lanes.js";
import { createCrosshair, listen } from "./plot.js";
import { drawLegend, drawProfile } from "./profile.js";
import { columnAt } from "./steps.js";
import { layOut, rowOf } from "./tree.js";

/** Height of the heatmap: twenty pixels a row, within what the eye takes in at once; but a pixel for each. */
export const heightFor = (rows) => Math.max(Math.min(Math.max(rows * 20, 220), 460), rows);

/**
 * @param {Object} actions `choose({layer, step})`, `zoom([from, to])`, `wheel(factor, step)`, `reset()`, `fold(path)`,
 *   `key(event)`, `showAlert(alert)`, and `tooltip`.
 */
export function createChart(actions) {
  const canvas = (name) => h("canvas", { class: name, "aria-hidden": "true" });
  const parts = {
    labels: canvas("labels"), heat: canvas("heat"), profile: canvas("profile"), steps: canvas("steps"),
    legend: canvas("legend"), lanes: canvas("lanes"),
  };
  const folds = h("div", { class: "folds" });
  const crosshair = createCrosshair();
  const rowMark = h("div", { class: "rowmark", hidden: true });
  const plot = h(
    "div",
    {
      class: "plot", tabindex: "0", role: "application", "aria-roledescription": "heatmap",
      "aria-describedby": "gw-cell", onkeydown: actions.key,
    },
    parts.heat, rowMark, ...crosshair.elements,
  );
  const gutter = h("div", { class: "gutter" }, parts.labels, folds);
  const profileTitle = h("span", { class: "profile-title" });
  const caption = h("div", { class: "ends" }, h("span", { text: "loss side" }));
  const overlays = h("div", { class: "overlays" });
  const lanesBox = h("div", { class: "lanes-box" }, parts.lanes, createKey());
  const element = h(
    "div",
    { class: "grid" },
    h("div", { class: "corner", text: "input side" }), h("div", { class: "spacer" }), profileTitle,
    gutter, plot, h("div", { class: "side" }, parts.profile),
    caption, parts.steps, parts.legend,
    lanesBox, overlays,
  );
  let model = null;
  let rows = [];
  let hovered = null;

  listen(plot, () => model?.domain ?? [0, 1], {
    hover: (step, y, event) => hover(step, y, event),
    leave: () => hover(null),
    click: (step, y) => {
      plot.focus({ preventScroll: true });
      const place = placeAt(step, y);
      if (place) actions.choose({ layer: model.layers[place.row.first], step: model.frame.steps[place.column] });
    },
    zoom: actions.zoom, wheel: actions.wheel, reset: actions.reset,
  });
  gutter.addEventListener("click", ({ offsetY, target }) => {
    const row = target.closest("button") ? null : rows.find(({ top, height }) => offsetY >= top && offsetY < top + height);
    if (row) actions.choose({ layer: model.layers[row.first] });
  });
  for (const type of ["pointermove", "pointerleave"]) parts.lanes.addEventListener(type, hoverLanes);
  parts.lanes.addEventListener("click", (event) => {
    const alert = laneAt(event);
    if (alert) actions.showAlert(alert);
  });

  function placeAt(step, y) {
    if (!model || step === null) return null;
    const row = rows.find(({ top, height }) => y >= top && y < top + height);
    const column = columnAt(model.spans, step);
    return row && column >= 0 ? { row, column } : null;
  }

  function hover(step, y, event) {
    const place = placeAt(step, y);
    if (place) {
      const { name, when, label, value, notes } = describe(model, place.row, place.column);
      actions.tooltip.show(event, name, [`${when} · ${label} ${value}`, ...notes]);
    } else actions.tooltip.hide();
    const column = place?.column ?? null;
    if (column === hovered) return;
    hovered = column;
    actions.hover(column === null ? null : model.frame.steps[column]);
    drawSide();
  }

  const laneBox = () => ({ x: gutter.clientWidth, y: 4, width: plot.clientWidth });
  function laneAt({ offsetX, offsetY }) {
    return model && alertAt(model.lanes, offsetX, offsetY, model.domain, laneBox());
  }
  function hoverLanes(event) {
    const alert = event.type === "pointerleave" ? null : laneAt(event);
    parts.lanes.style.cursor = alert ? "pointer" : "";
    if (!alert) return actions.tooltip.hide();
    const { step, until_step: until } = alert;
    const when = until === null ? `since step ${formatStep(step)}, open` : formatSteps(step, until);
    return actions.tooltip.show(event, alert.layer || "the run as a whole", [when, alert.evidence].filter(Boolean));
  }

  /** The lines at a step that is hovered somewhere else. */
  function markHover(step) {
    crosshair.hover(step, model?.domain ?? [0, 1], plot.clientWidth);
  }

  function drawSide() {
    const { context, width, height } = prepare(parts.profile);
    if (!model || !width) return;
    const column = hovered ?? model.column;
    const cells = hovered === null && model.exact ? model.exact : model.cells.subarray(column * model.frame.rows, (column + 1) * model.frame.rows);
    const box = { x: 10, y: 0, width: width - 20, height };
    const shown = hovered === null ? model.overlays : [];
    drawProfile(context, box, { ...model, rows, cells, overlays: shown, layers: model.layers.length, chosen: model.row }, model.palette);
    profileTitle.textContent = `${model.compare ? "Difference" : "Depth profile"} at ${formatSteps(model.frame.steps[column], model.frame.lastSteps[column])}`;
    overlays.replaceChildren(...overlayChips(model));
    const legend = prepare(parts.legend);
    drawLegend(legend.context, { x: 10, y: 4, width: legend.width - 20 }, model, model.palette);
  }

  function drawFolds() {
    const wanted = brackets(model.groups, rows).filter(({ height }) => height >= 12);
    const left = gutter.clientWidth - levelsOf(model.groups) * LEVEL;
    const signature = JSON.stringify([left, wanted]);
    if (folds.dataset.signature === signature) return;
    const focused = document.activeElement?.dataset?.path;
    folds.dataset.signature = signature;
    folds.replaceChildren(
      ...wanted.map(({ path, x, top, height, folded }) => {
        const button = h("button", {
          type: "button", class: "fold", "aria-expanded": String(!folded), "data-path": path,
          "aria-label": `${folded ? "Unfold" : "Fold"} ${path}`, title: path, onclick: () => actions.fold(path),
        });
        button.style.left = `${left + x}px`;
        button.style.top = `${top + (folded ? height / 2 : Math.min(height / 2, 9)) - 8}px`;
        button.style.width = `${LEVEL}px`;
        return button;
      }),
    );
    if (focused) folds.querySelector(`[data-path="${CSS.escape(focused)}"]`)?.focus();
  }

  function drawPlot() {
    const { context, width, height } = prepare(parts.heat);
    if (!width) return false;
    rows = layOut(model.rows, height);
    const ratio = devicePixelRatio || 1;
    drawHeatmap(context, { x: 0, y: 0, width, height }, { ...model, rows }, model.palette, ratio);
    parts.heat.dataset.from = model.domain[0];
    parts.heat.dataset.to = model.domain[1];
    crosshair.choose(model.frame.steps[model.column] ?? null, model.domain, width);
    const row = rows[model.row];
    rowMark.hidden = !row;
    if (row) {
      rowMark.style.top = `${row.top}px`;
      rowMark.style.height = `${row.height}px`;
    }
    return true;
  }

  function update(next) {
    model = next;
    if (hovered !== null && hovered >= model.frame.columns) hovered = null;
    const height = heightFor(model.rows.length);
    element.style.setProperty("--height", `${height}px`);
    element.style.setProperty("--lanes", `${model.lanes.length ? model.lanes.length * LANE + 8 : 0}px`);
    plot.setAttribute("aria-label", model.label);
    if (!drawPlot()) return false;
    const labels = prepare(parts.labels);
    const alerted = new Set(model.alerts.filter((a) => a.until_step === null && a.layer).map((a) => rowOf(rows, model.layers.indexOf(a.layer))));
    drawLabels(labels.context, { x: 0, y: 0, ...labels }, { rows, groups: model.groups, chosen: model.row, alerted }, model.palette);
    drawFolds();
    const steps = prepare(parts.steps);
    drawSteps(steps.context, { x: 0, y: 0, width: steps.width }, model, model.palette);
    const lanes = prepare(parts.lanes);
    drawLanes(lanes.context, laneBox(), { ...model, gutter: true }, model.palette);
    drawSide();
    return true;
  }

  return { element, plot, update, markHover, redrawSide: drawSide, boxes: () => ({ gutter: gutter.clientWidth, plot: plot.clientWidth, side: parts.profile.clientWidth, height: parts.heat.clientHeight }) };
}

/** Who is who in the profile; or, of a comparison, what the colours mean. */
function overlayChips({ run, compare, overlays, palette, stops }) {
  const chip = (name, border, text = name) => {
    const line = h("i", { class: "stroke" });
    line.style.borderTop = border;
    return h("span", { class: "chip", title: name }, line, h("span", { text }));
  };
  if (compare) {
    const [less, more] = [stops[1], stops.at(-2)].map(css);
    return [
      chip(run.run, `6px solid ${more}`, `more in ${run.run}`),
      chip(compare, `6px solid ${less}`, `more in ${compare}`),
    ];
  }
  if (!overlays.length) return [];
  const others = overlays.map(({ name, colour, dash }) => chip(name, `2px ${dash.length ? "dashed" : "solid"} ${colour}`));
  return [chip(run.run, `2px solid ${palette.ink}`), ...others];
}
