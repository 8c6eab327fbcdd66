/** One layer: the distribution of its gradients over time, its numbers and its alerts; its past, if it is recurrent. */
import { whatOf } from "./banner.js";
import { drawDecades, drawDistribution, usedBins } from "./distribution.js";
import { h, prepare } from "./dom.js";
import { capital, formatNumber, formatStep, formatSteps, formatValue } from "./format.js";
import { createCrosshair, listen } from "./plot.js";
import { createSequence } from "./sequence.js";
import { kindOf, labelOf, particular, quantityOf, shown, usualNorm } from "./tables.js";

const TITLE = "gradient elements |g|, logarithmic; a stronger colour is a larger share of them";
const NO_HISTOGRAM = "No histogram of this layer has been logged yet (histogram_every).";

/** @param {Pick<PageActions, "zoom" | "wheel" | "reset" | "hover" | "move">} actions */
export function createLayerPanel(actions) {
  const title = h("h2", { id: "gw-layer" });
  const decades = h("canvas", { class: "decades", "aria-hidden": "true" });
  const canvas = h("canvas", { class: "distribution", "aria-hidden": "true" });
  const empty = h("p", { class: "empty-note", text: NO_HISTOGRAM });
  const plot = h("div", { class: "plot low", role: "img" }, canvas, empty);
  const crosshair = createCrosshair();
  plot.append(...crosshair.elements);
  const numbersTitle = h("h3");
  const numbers = h("dl");
  const alerts = h("ul", { class: "alerts" });
  const sequence = createSequence();
  const element = h(
    "section",
    { class: "card layer", "aria-labelledby": "gw-layer" },
    h(
      "header", {}, title,
      button("↑", "Previous layer", () => actions.move(-1)), button("↓", "Next layer", () => actions.move(1)),
    ),
    h(
      "div",
      { class: "grid" },
      h("div", { class: "gutter" }, h("span", { class: "gutter-title", text: TITLE }), decades),
      plot, h("div", { class: "numbers" }, numbersTitle, numbers), sequence.element, alerts,
    ),
  );
  /** @type {Dress|null} */
  let view = null;
  listen(plot, () => view?.domain ?? [0, 1], {
    hover: (step) => actions.hover(step), leave: () => actions.hover(null),
    zoom: actions.zoom, wheel: actions.wheel, reset: actions.reset,
  });

  /**
   * @param {LayerDetail} detail
   * @param {Dress} nextView
   */
  function update(detail, nextView) {
    view = nextView;
    title.replaceChildren(h("span", { class: "muted", text: "Layer " }), h("span", { text: detail.layer }));
    numbersTitle.textContent = `Numbers at ${formatSteps(detail.step, detail.lastStep)}`;
    numbers.replaceChildren(...numberRows(detail));
    alerts.replaceChildren(...detail.alerts.map(alertItem));
    plot.setAttribute("aria-label", `Distribution of the gradient elements of ${detail.layer} over the steps`);
    drawFrame(detail.frame, nextView);
    sequence.update(detail.sequence, nextView);
    crosshair.choose(nextView.step, nextView.domain, plot.clientWidth);
  }

  /**
   * @param {HistogramFrame|null} frame
   * @param {Dress} dress
   */
  function drawFrame(frame, { domain, palette }) {
    const target = prepare(canvas);
    const axis = prepare(decades);
    empty.hidden = Boolean(frame?.columns);
    if (!frame?.columns || !target.width) return;
    const bins = usedBins(frame);
    const box = { x: 0, y: 0, width: target.width, height: target.height };
    drawDistribution(target.context, box, { frame, domain, bins }, palette, devicePixelRatio || 1);
    drawDecades(axis.context, { ...box, width: axis.width, height: axis.height }, { frame, bins }, palette);
  }

  /** @type {PageActions["hover"]} */
  const hover = (step) => view && crosshair.hover(step, view.domain, plot.clientWidth);
  return { element, update, hover };
}

/**
 * @param {string} text
 * @param {string} label
 * @param {() => void} onclick
 */
const button = (text, label, onclick) =>
  h("button", { type: "button", class: "button square", "aria-label": label, text, onclick });

/** @param {LayerDetail} detail */
function numberRows({ numbers, range, rms, step, lastStep }) {
  const rows = shown(Object.keys(numbers))
    .filter((name) => name === particular().default || !(numbers[name] < 0))
    .map((name) => [quantityOf(name).label, formatValue(numbers[name], name)]);
  if (rms !== null && rms >= 0) {
    const [norm, quantity] = [usualNorm(), particular().default];
    rows.splice(1, 0, [labelOf({ quantity, norm }), formatValue(rms, quantity)]);
  }
  if (range && range[2] >= 0 && range[0] !== range[2]) {
    const [low, middle, high] = range.map((value) => formatNumber(value, 3));
    const isOfSteps = lastStep > step;
    const label = isOfSteps ? "lowest to highest" : "lowest to highest since the last point";
    rows.splice(1, 0, [label, `${low} to ${high}`], ...(isOfSteps ? [["mean", middle]] : []));
  }
  return rows.map(([term, text]) => h("div", { class: "number" }, h("dt", { text: term }), h("dd", { text })));
}

/** @param {Alert} alert */
function alertItem(alert) {
  const { level, until_step: until, kind, step } = alert;
  const when = until === null ? `since step ${formatStep(step)}` : `steps ${formatStep(step)} to ${formatStep(until)}`;
  return h(
    "li",
    { "data-level": level, "data-open": String(until === null) },
    h("strong", { text: kindOf(kind).label }), h("span", { class: "when", text: when }),
    h("p", { text: whatOf(alert) }),
    alert.evidence ? h("p", { class: "muted", text: capital(alert.evidence) }) : null,
    alert.remedies?.length ? h("p", {}, h("b", { text: "Try " }), alert.remedies.join("; ")) : null,
  );
}
