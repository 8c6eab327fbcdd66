/** Draws what is loaded, with the cursor where the state has it and in the colours of the theme. */
import { describe, sentence } from "./describe.js";
import { toModel } from "./model.js";
import { readPalette } from "./theme.js";

/**
 * @param {{store: Store, scene: Scene, page: Page, drawn: () => void}} parts `drawn` is called after every drawing.
 */
export function createPainter({ store, scene, page, drawn }) {
  /** @type {Palette|null} */
  let palette = null;

  function draw() {
    if (!scene.view) return;
    palette ??= readPalette();
    const model = withDetails(toModel(scene.view, store.get(), palette, scene.runs), scene.model);
    scene.model = model;
    page.banner.update(model.run, model.run.alerts);
    page.toolbar.update(model);
    if (!page.chart.update(model)) return;
    page.say(sentence(describe(model, model.rows[model.row], model.column)));
    page.setBusy(true);
    drawn();
  }

  /**
   * @param {RunRow} row
   * @param {Picture|null} thumbnail
   */
  function drawThumbnail(row, thumbnail) {
    palette ??= readPalette();
    page.strip.drawThumbnail(row, thumbnail, palette);
  }

  function repaint() {
    palette = null;
    draw();
  }

  return { draw, drawThumbnail, repaint };
}

/**
 * What was known beside the heatmap stays until it is asked for again, as far as it still holds.
 * @param {Omit<Model, "overlays" | "exact" | "means">} next
 * @param {Model|null} before
 * @returns {Model}
 */
function withDetails(next, before) {
  const means = before?.frame === next.frame ? before.means : null;
  if (!before || before.frame !== next.frame || before.palette !== next.palette) {
    return { ...next, overlays: [], exact: null, means };
  }
  const exact = before.column === next.column ? before.exact : null;
  return { ...next, overlays: before.overlays, exact, means };
}
