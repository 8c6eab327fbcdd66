/** The lines under the heatmap, on the same steps: loss, clip coefficient, share of clipped steps. */
import { h, setOptions } from "./dom.js";
import { formatNumber } from "./format.js";
import { drawLine } from "./lines.js";
import { createCrosshair } from "./plot.js";

const HEIGHT = 92;

/** @param {Object} actions `zoom`, `reset`, `hover(step)` and `chooseLoss(tag)`. */
export function createLinePanel(actions) {
  const element = h("div", { class: "lines" });
  const panels = new Map();

  /** @param {Object[]} lines `{key, label, tag, tags?, data: {steps, values}, range?}` */
  function update(lines, view) {
    for (const [key, panel] of panels) if (!lines.some((line) => line.key === key)) remove(key, panel);
    lines.forEach((line, i) => {
      if (!panels.has(line.key)) panels.set(line.key, createPanel(line, actions));
      const panel = panels.get(line.key);
      if (element.children[i] !== panel.element) element.insertBefore(panel.element, element.children[i] ?? null);
      panel.update(line, view);
    });
  }
  function remove(key, panel) {
    panel.destroy();
    panel.element.remove();
    panels.delete(key);
  }
  const each = (method) => (...values) => panels.forEach((panel) => panel[method](...values));
  const canvases = () => [...panels.values()].map((panel) => panel.picture()).filter(Boolean);
  return { element, update, choose: each("choose"), hover: each("hover"), canvases };
}

function createPanel({ key }, actions) {
  const holder = h("div", { class: "holder" });
  const value = h("span", { class: "reading" });
  const select = key === "loss" ? createChoice(actions.chooseLoss) : null;
  const name = h("span", { class: "line-name" });
  const element = h(
    "div",
    { class: "line" },
    h("div", { class: "line-label" }, select ?? name), holder, h("div", { class: "line-side" }, value),
  );
  const crosshair = createCrosshair();
  let plot = null;
  let signature = null;
  let line = null;
  let view = null;

  function update(next, nextView) {
    [line, view] = [next, nextView];
    if (select) setOptions(select, line.tags.map((tag) => [tag, tag]), line.tag);
    else name.textContent = line.label;
    const { steps, values } = line.data;
    const { domain, width, gutter, palette } = view;
    const data = [line.tag, steps.length, steps.at(-1), values.at(-1)];
    const now = JSON.stringify([...data, domain, width, gutter, palette.ink]);
    if (now !== signature) {
      signature = now;
      destroy();
      draw(steps, values);
    }
    choose(view.step);
  }
  function draw(steps, values) {
    const { label, range } = line;
    const how = { ...view, height: HEIGHT, label, range, onZoom: actions.zoom, onReset: actions.reset };
    plot = drawLine(holder, { x: steps, y: values }, how);
    plot.over.append(...crosshair.elements);
    plot.over.addEventListener("pointermove", ({ offsetX }) => actions.hover(plot.posToVal(offsetX, "x")));
    plot.over.addEventListener("pointerleave", () => actions.hover(null));
    plot.root.setAttribute("aria-hidden", "true");
  }
  function destroy() {
    plot?.destroy();
    plot = null;
  }
  function reading(step) {
    const { steps, values } = line.data;
    let place = steps.length - 1;
    while (place > 0 && steps[place] > step) place -= 1;
    if (place < 0) return "no points";
    return `${line.label} ${formatNumber(values[place])} at step ${steps[place]}`;
  }
  function choose(step) {
    if (!plot) return;
    crosshair.choose(step, view.domain, view.width);
    value.textContent = reading(step ?? Infinity);
  }
  function hover(step) {
    if (!plot) return;
    crosshair.hover(step, view.domain, view.width);
    value.textContent = reading(step ?? view.step ?? Infinity);
  }
  const picture = () => plot && { canvas: plot.ctx.canvas, label: line.label, height: HEIGHT };
  return { element, update, choose, hover, destroy, picture };
}

function createChoice(choose) {
  const select = h("select", { "aria-label": "Scalar below the heatmap", onchange: () => choose(select.value) });
  return select;
}
