/** The lines under the heatmap, on the same steps: loss, total norm and its limit, what clipping did. */
import { h, setOptions } from "./dom.js";
import { formatNumber, formatSteps, lineName } from "./format.js";
import { drawLine } from "./lines.js";
import { createCrosshair } from "./plot.js";

/** @typedef {ReturnType<typeof createPanel>} Panel */

const HEIGHT = 92;

/** @param {Pick<PageActions, "zoom" | "reset" | "hover" | "chooseLoss">} actions */
export function createLinePanel(actions) {
  const element = h("div", { class: "lines" });
  const panels = /** @type {Map<string, Panel>} */ (new Map());

  /**
   * @param {LineData[]} lines
   * @param {Dress} view
   */
  function update(lines, view) {
    for (const [key, panel] of panels) if (!lines.some((line) => line.key === key)) remove(key, panel);
    lines.forEach((line, i) => {
      const panel = panels.get(line.key) ?? createPanel(line.key, actions);
      panels.set(line.key, panel);
      if (element.children[i] !== panel.element) element.insertBefore(panel.element, element.children[i] ?? null);
      panel.update(line, view);
    });
  }

  /**
   * @param {string} key
   * @param {Panel} panel
   */
  function remove(key, panel) {
    panel.destroy();
    panel.element.remove();
    panels.delete(key);
  }

  /** @type {PageActions["hover"]} */
  const hover = (step) => panels.forEach((panel) => panel.hover(step));
  const pictures = () => [...panels.values()].flatMap((panel) => panel.picture() ?? []);
  return { element, update, hover, pictures };
}

/**
 * @param {string} key
 * @param {Parameters<typeof createLinePanel>[0]} actions
 */
function createPanel(key, actions) {
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
  /** @type {ReturnType<typeof drawLine>|null} */
  let plot = null;
  let signature = "";
  /** @type {LineData} */
  let line;
  /** @type {Dress} */
  let view;

  /**
   * @param {LineData} next
   * @param {Dress} nextView
   */
  function update(next, nextView) {
    [line, view] = [next, nextView];
    if (select) setOptions(select, (line.tags ?? []).map((tag) => [tag, lineName(tag)]), line.tag);
    else name.textContent = line.label;
    const { steps, values } = line.data;
    const { domain, width, gutter, palette } = view;
    const data = [line.tag, steps.length, steps.at(-1), values.at(-1)];
    const now = JSON.stringify([...data, domain, width, gutter, palette.ink]);
    if (now !== signature) {
      signature = now;
      destroy();
      draw(line.data);
    }
    choose(view.step);
  }

  /** @param {ScalarData} data */
  function draw({ steps, last_steps: ends = steps, values, lows, highs }) {
    const { label, range } = line;
    const limits = limitsAt(steps);
    const isLogarithmic = limits !== undefined;
    const how = { ...view, height: HEIGHT, label, range, isLogarithmic, onZoom: actions.zoom, onReset: actions.reset };
    const x = steps.map((step, i) => (step + ends[i]) / 2);
    const drawn = drawLine(holder, { x, y: values, lows, highs, limits }, how);
    drawn.over.append(...crosshair.elements);
    drawn.over.addEventListener("pointermove", ({ offsetX }) => actions.hover(drawn.posToVal(offsetX, "x")));
    drawn.over.addEventListener("pointerleave", () => actions.hover(null));
    drawn.root.setAttribute("aria-hidden", "true");
    plot = drawn;
  }
  /**
   * The limit at given steps: that of the latest point until then.
   * @param {number[]} steps
   */
  function limitsAt(steps) {
    if (!line.limit) return undefined;
    const { steps: known, values } = line.limit.data;
    let place = 0;
    return steps.map((step) => {
      while (place + 1 < known.length && known[place + 1] <= step) place += 1;
      return known[place] <= step ? values[place] : NaN;
    });
  }
  function destroy() {
    plot?.destroy();
    plot = null;
  }
  function reading(/** @type {number} */ step) {
    const { steps, last_steps: ends = steps, values, lows = values, highs = values } = line.data;
    let place = steps.length - 1;
    while (place > 0 && steps[place] > step) place -= 1;
    if (place < 0) return "no points";
    const [low, value, high] = [lows, values, highs].map((numbers) => formatNumber(numbers[place]));
    const between = lows[place] < highs[place] ? ` (${low} to ${high})` : "";
    const limit = limitsAt(steps)?.[place];
    const under = limit === undefined ? "" : `, ${line.limit?.label} ${formatNumber(limit)}`;
    return `${line.label} ${value}${between}${under} at ${formatSteps(steps[place], ends[place])}`;
  }
  function choose(/** @type {number|null} */ step) {
    if (!plot) return;
    crosshair.choose(step, view.domain, view.width);
    value.textContent = reading(step ?? Infinity);
  }
  function hover(/** @type {number|null} */ step) {
    if (!plot) return;
    crosshair.hover(step, view.domain, view.width);
    value.textContent = reading(step ?? view.step ?? Infinity);
  }
  const picture = () => plot && { canvas: plot.ctx.canvas, label: line.label, height: HEIGHT };
  return { element, update, hover, destroy, picture };
}

/** @param {(tag: string) => void} choose */
function createChoice(choose) {
  const select = h("select", { "aria-label": "Scalar below the heatmap", onchange: () => choose(select.value) });
  return select;
}
