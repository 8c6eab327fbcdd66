/** The parts of the page, put together. */
import { createBanner } from "./banner.js";
import { createChart } from "./chart.js";
import { h } from "./dom.js";
import { createTrouble, emptyState } from "./empty.js";
import { createHelp } from "./help.js";
import { createHint } from "./hint.js";
import { keysOf } from "./keyboard.js";
import { createLayerPanel } from "./layerpanel.js";
import { createLinePanel } from "./linepanel.js";
import { titleOf } from "./names.js";
import { createRunStrip } from "./runstrip.js";
import { createToolbar } from "./toolbar.js";
import { createTooltip } from "./tooltip.js";

/** Pixels of the page beside the heatmap. */
const BESIDE = 520;

/** @param {Commands} given What the parts call; what concerns two parts of the page is added here. */
export function createPage(given) {
  const tooltip = createTooltip();
  const help = createHelp();
  /** @type {PageActions} */
  const actions = { ...given, tooltip, help: help.open, search: () => toolbar.search(), hover, showAlert };
  const trouble = createTrouble(actions.retry);
  const notice = h("p", { class: "unknown-run", role: "status", hidden: true });
  const strip = createRunStrip(actions, actions.seen);
  const banner = createBanner(actions);
  const toolbar = createToolbar(actions);
  const chart = createChart({ ...actions, key: keysOf(actions) });
  const hint = createHint();
  for (const use of ["click", "keydown"]) chart.element.addEventListener(use, hint.used);
  const lines = createLinePanel(actions);
  const layerPanel = createLayerPanel(actions);
  const cell = h("p", { id: "gw-cell", class: "visually-hidden", role: "status", "aria-live": "polite" });
  const body = h("div", { class: "body" });
  const panel = h(
    "section",
    { class: "card", "aria-label": "Gradients by layer and step" },
    hint.element, toolbar.element, chart.element, lines.element,
  );
  const element = h(
    "main",
    { class: "gradwatch", "aria-busy": "true" },
    h("h1", { class: "visually-hidden", text: "GradWatch" }),
    trouble.element, notice, strip.element, body, cell, tooltip.element, help.element,
  );

  function place(/** @type {HTMLElement[]} */ ...parts) {
    const isThere = parts.length === body.children.length && parts.every((part, i) => part === body.children[i]);
    if (!isThere) body.replaceChildren(...parts);
  }
  function hover(/** @type {number|null} */ step) {
    for (const part of [lines, layerPanel, chart]) part.hover(step);
  }
  function showAlert(/** @type {Alert} */ alert) {
    given.showAlert(alert);
    chart.plot.focus();
  }
  return {
    element, strip, banner, toolbar, chart, lines, layerPanel, trouble,
    showView: () => place(banner.element, panel, layerPanel.element),
    /**
     * Nothing to draw: of a run that is watched, or cannot be read, the banner says why.
     * @param {RunDocument|null} run
     * @param {boolean} isAnyWatched
     */
    showEmpty(run, isAnyWatched) {
      if (run) banner.update(run, run.alerts);
      const isToldMore = run !== null && run.status !== "not_watched";
      const isUnknown = run?.status === "unreadable";
      place(...(isToldMore ? [banner.element] : []), ...(isUnknown ? [] : [emptyState(isToldMore, isAnyWatched)]));
    },
    /**
     * Say that a run is not here, such as one of a link.
     * @param {string|null} wanted
     * @param {string|null} instead
     */
    unknown(wanted, instead) {
      notice.hidden = wanted === null;
      const here = instead === null ? "" : ` Shown is ${titleOf(instead)}.`;
      notice.textContent = `There is no run ${wanted} here: it may have been moved, or not be read yet.${here}`;
    },
    say: (/** @type {string} */ text) => (cell.textContent = text),
    setBusy: (/** @type {boolean} */ isBusy) => element.setAttribute("aria-busy", String(isBusy)),
    /** One for each pixel of the heatmap, or of what it is going to be, in hundreds. */
    columns() {
      const width = chart.boxes().plot || document.documentElement.clientWidth - BESIDE;
      return Math.min(Math.max(Math.ceil(width / 100) * 100, 200), 2000);
    },
  };
}
