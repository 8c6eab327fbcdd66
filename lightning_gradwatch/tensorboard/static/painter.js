/** Draws what is loaded, with the cursor where the state has it and in the colours of the theme. */
import { describe, sentence } from "./describe.js";
import { toModel } from "./model.js";
import { readPalette } from "./theme.js";

/**
 * @param {Object} parts `store`, `scene`, `page`, and `drawn`, called after every drawing.
 */
export function createPainter({ store, scene, page, drawn }) {
  let palette = null;

  function draw() {
    if (!scene.view) return;
    palette ??= readPalette();
    scene.model = withDetails(toModel(scene.view, store.get(), palette, scene.others), scene.model);
    const { model } = scene;
    page.banner.update(model.run, model.run.alerts);
    page.toolbar.update(model);
    if (!page.chart.update(model)) return;
    page.say(sentence(describe(model, model.rows[model.row], model.column)));
    page.setBusy(true);
    drawn();
  }

  function drawThumbnail(run, thumbnail) {
    palette ??= readPalette();
    page.strip.drawThumbnail(run, thumbnail, palette);
  }

  function repaint() {
    palette = null;
    draw();
  }

  return { draw, drawThumbnail, repaint };
}

/** What was known beside the heatmap stays until it is asked for again, as far as it still holds. */
function withDetails(next, before) {
  const isSameView = before?.frame === next.frame && before.palette === next.palette;
  const overlays = isSameView ? before.overlays : [];
  const exact = isSameView && before.column === next.column ? before.exact : null;
  return { ...next, overlays, exact };
}
