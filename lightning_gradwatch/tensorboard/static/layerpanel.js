/** One layer: the distribution of its gradients over time, its numbers, its alerts; and the past, if it is recurrent. */
import { whatOf } from "./banner.js";
import { drawDecades, drawDistribution, usedBins } from "./distribution.js";
import { h, prepare } from "./dom.js";
import { formatDecade, formatKind, formatNumber, formatStep, formatValue } from "./format.js";
import { drawLine } from "./lines.js";
import { createCrosshair, listen } from "./plot.js";
import { QUANTITIES } from "./quantities.js";

/** @param {Object} actions `zoom`, `wheel`, `reset`, `hover(step)`, `move(rows)`. */
export function createLayerPanel(actions) {
  const title = h("h2", { id: "gw-layer" });
  const decades = h("canvas", { class: "decades", "aria-hidden": "true" });
  const canvas = h("canvas", { class: "distribution", "aria-hidden": "true" });
  const empty = h("p", { class: "empty-note", text: "No histogram of this layer has been logged yet (histogram_every)." });
  const plot = h("div", { class: "plot low", role: "img" }, canvas, empty);
  const crosshair = createCrosshair();
  plot.append(...crosshair.elements);
  const numbersTitle = h("h3");
  const numbers = h("dl");
  const alerts = h("ul", { class: "alerts" });
  const sequence = createSequence();
  const button = (text, label, by) => h("button", { type: "button", class: "button square", "aria-label": label, text, onclick: () => actions.move(by) });
  const element = h(
    "section",
    { class: "card layer", "aria-labelledby": "gw-layer" },
    h("header", {}, title, button("↑", "Previous layer", -1), button("↓", "Next layer", 1)),
    h("div", { class: "grid" }, h("div", { class: "gutter" }, h("span", { class: "gutter-title", text: "gradient elements |g|" }), decades), plot, h("div", { class: "numbers" }, numbersTitle, numbers), sequence.element, alerts),
  );
  let view = null;
  listen(plot, () => view?.domain ?? [0, 1], {
    hover: (step) => actions.hover(step), leave: () => actions.hover(null),
    zoom: actions.zoom, wheel: actions.wheel, reset: actions.reset,
  });

  /** @param {Object} detail `{layer, step, numbers, range, frame, sequence, alerts, quantities}` */
  function update(detail, nextView) {
    view = nextView;
    title.replaceChildren(h("span", { class: "muted", text: "Layer " }), h("span", { text: detail.layer }));
    numbersTitle.textContent = `Numbers at step ${formatStep(detail.step)}`;
    numbers.replaceChildren(...numberRows(detail));
    alerts.replaceChildren(...detail.alerts.map(alertItem));
    plot.setAttribute("aria-label", `Distribution of the gradient elements of ${detail.layer} over the steps`);
    drawFrame(detail.frame);
    sequence.update(detail.sequence, view);
    crosshair.choose(view.step, view.domain, plot.clientWidth);
  }
  function drawFrame(frame) {
    const target = prepare(canvas);
    const axis = prepare(decades);
    const hasData = Boolean(frame?.columns);
    empty.hidden = hasData;
    if (!hasData || !target.width) return;
    const bins = usedBins(frame);
    const box = { x: 0, y: 0, width: target.width, height: target.height };
    drawDistribution(target.context, box, { frame, domain: view.domain, bins }, view.palette, devicePixelRatio || 1);
    drawDecades(axis.context, { ...box, width: axis.width, height: axis.height }, { frame, bins }, view.palette);
  }
  return { element, update, hover: (step) => view && crosshair.hover(step, view.domain, plot.clientWidth) };
}

function numberRows({ numbers, range }) {
  const rows = Object.keys(QUANTITIES)
    .filter((name) => name in numbers && (name === "grad_norm" || !(numbers[name] < 0)))
    .map((name) => [QUANTITIES[name].label, formatValue(numbers[name], name)]);
  if (range && range[2] >= 0) {
    rows.splice(1, 0, ["lowest to highest since the last point", `${formatNumber(range[0], 3)} to ${formatNumber(range[2], 3)}`]);
  }
  return rows.map(([term, text]) => h("div", { class: "number" }, h("dt", { text: term }), h("dd", { text })));
}

function alertItem(alert) {
  const { level, until_step: until, kind, step } = alert;
  const when = until === null ? `since step ${formatStep(step)}` : `steps ${formatStep(step)} to ${formatStep(until)}`;
  return h(
    "li",
    { "data-level": level, "data-open": String(until === null) },
    h("strong", { text: formatKind(kind) }), h("span", { class: "when", text: when }),
    h("p", { text: whatOf(alert) }),
    alert.evidence ? h("p", { class: "muted", text: alert.evidence }) : null,
    alert.remedies?.length ? h("p", {}, h("b", { text: "Try " }), alert.remedies.join("; ")) : null,
  );
}

/** Gradient against time steps back, with the horizon behind which less than 1 % of it arrives. */
function createSequence() {
  const holder = h("div", { class: "holder", role: "img" });
  const title = h("h3");
  const side = h("p", { class: "sequence-side muted" });
  const element = h("div", { class: "sequence", hidden: true }, title, holder, side);
  let plot = null;
  function update(sequence, { width, gutter, palette }) {
    plot?.destroy();
    plot = null;
    element.hidden = !sequence?.steps_back.length;
    if (element.hidden) return;
    const order = sequence.steps_back.map((_, i) => i).sort((a, b) => sequence.steps_back[a] - sequence.steps_back[b]);
    const x = order.map((i) => sequence.steps_back[i]);
    const y = order.map((i) => Math.log10(sequence.norms[i]));
    const farthest = Math.max(x.at(-1), 1);
    title.textContent = `Gradient against time steps back, at step ${formatStep(sequence.step)}`;
    const horizon = Number.isFinite(sequence.horizon) ? sequence.horizon : null;
    side.textContent = horizon === null ? "" : `Memory horizon: ${formatNumber(horizon, 3)} of ${farthest + 1} time steps`;
    holder.setAttribute("aria-label", `${title.textContent}. ${side.textContent}`);
    const view = { width, gutter, palette, height: 140, domain: [0, farthest], showSteps: true, label: "gradient norm" };
    plot = drawLine(holder, { x, y }, { ...view, format: (value) => (Number.isInteger(value) ? formatDecade(value) : "") });
    if (horizon === null) return;
    const mark = h("div", { class: horizon > 0.8 * farthest ? "horizon late" : "horizon" });
    mark.style.left = `${(100 * Math.min(horizon, farthest)) / farthest}%`;
    plot.over.append(mark);
  }
  return { element, update };
}

