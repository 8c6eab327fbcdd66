/** The parts of the page, put together. */
import { createBanner } from "./banner.js";
import { createChart } from "./chart.js";
import { h } from "./dom.js";
import { createTrouble, emptyState } from "./empty.js";
import { createHelp } from "./help.js";
import { createLayerPanel } from "./layerpanel.js";
import { createLinePanel } from "./linepanel.js";
import { createRunStrip } from "./runstrip.js";
import { createToolbar } from "./toolbar.js";
import { createTooltip } from "./tooltip.js";

/** @param {Object} actions What the parts call; see each of them. */
export function createPage(actions) {
  const tooltip = createTooltip();
  const help = createHelp();
  const trouble = createTrouble(actions.retry);
  const strip = createRunStrip(actions.chooseRun);
  const banner = createBanner(actions);
  const toolbar = createToolbar({ ...actions, help: help.open });
  const chart = createChart({ ...actions, tooltip });
  const lines = createLinePanel(actions);
  const layerPanel = createLayerPanel(actions);
  const cell = h("p", { id: "gw-cell", class: "visually-hidden", role: "status", "aria-live": "polite" });
  const body = h("div", { class: "body" });
  const panel = h(
    "section",
    { class: "card", "aria-label": "Gradients by layer and step" },
    toolbar.element, chart.element, lines.element,
  );
  const element = h(
    "main",
    { class: "gradwatch", "aria-busy": "true" },
    h("h1", { class: "visually-hidden", text: "GradWatch" }),
    trouble.element, strip.element, body, cell, tooltip.element, help.element,
  );
  const place = (...parts) => {
    if (parts.length !== body.children.length || parts.some((part, i) => part !== body.children[i])) body.replaceChildren(...parts);
  };
  return {
    element, strip, banner, toolbar, chart, lines, layerPanel, trouble, help,
    showView: () => place(banner.element, panel, layerPanel.element),
    /** Nothing to draw: of a run that is watched the banner says why. */
    showEmpty(run, isAnyWatched) {
      if (run) banner.update(run, run.alerts);
      const isToldMore = run && run.status !== "not_watched";
      place(...(isToldMore ? [banner.element] : []), emptyState(isAnyWatched));
    },
    say: (text) => (cell.textContent = text),
    setBusy: (isBusy) => element.setAttribute("aria-busy", String(isBusy)),
    hover(step) {
      for (const part of [lines, layerPanel]) part.hover(step);
      chart.markHover(step);
    },
  };
}
