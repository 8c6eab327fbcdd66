/** What follows the heatmap as soon as the cursor rests: the lines, the chosen layer, what the profile still lacks. */
import { describe, sentence } from "./describe.js";
import { exactCells, layerOf, linesOf, meansOf, overlaysOf } from "./details.js";
import { middleOf } from "./steps.js";

/** Milliseconds that the cursor rests before details are asked for. */
const REST = 60;

/**
 * @param {{ask: Ask, store: Store, scene: Scene, page: Page, fail: (error: Error) => void}} parts
 * @returns {{rest: () => void}} `rest` is to be called whenever something was drawn.
 */
export function createFollowUp({ ask, store, scene, page, fail }) {
  let timer = 0;

  function rest() {
    clearTimeout(timer);
    timer = setTimeout(follow, REST);
  }

  async function follow() {
    const current = scene.model;
    if (!current) return;
    /** @type {<Found>(use: (found: Found) => void) => (found: Found) => void} */
    const whenCurrent = (use) => (found) => current === scene.model && use(found);
    const { gutter, plot } = page.chart.boxes();
    const step = middleOf(current.frame, current.column);
    const dress = { width: plot, gutter, domain: current.domain, palette: current.palette, step };
    const tasks = await Promise.allSettled([
      linesOf(ask, current, store.get().loss, compared(current)).then(
        whenCurrent((found) => page.lines.update(found, dress)),
      ),
      layerOf(ask, current, page.columns()).then(whenCurrent((found) => page.layerPanel.update(found, dress))),
      exactCells(ask, current).then(whenCurrent((exact) => redrawSide(current, { exact }))),
      meansOf(ask, current).then(whenCurrent((means) => tell(current, means))),
      overlaysOf(ask, current, scene.others).then(whenCurrent((overlays) => redrawSide(current, { overlays }))),
    ]);
    if (current !== scene.model) return;
    const failed = tasks.find((task) => task.status === "rejected");
    if (failed) fail(failed.reason);
    else if (!scene.isLoading) page.setBusy(false);
  }

  const compared = (/** @type {Model} */ { compare }) => scene.runs.find(({ run }) => run === compare);

  /**
   * @param {Model} current
   * @param {Partial<Model>} found
   */
  function redrawSide(current, found) {
    Object.assign(current, found);
    page.chart.redrawSide();
  }

  /**
   * What is said of the cell at the cursor, once the means are known.
   * @param {Model} current
   * @param {Float32Array|null} means
   */
  function tell(current, means) {
    if (means === current.means) return;
    current.means = means;
    page.say(sentence(describe(current, current.rows[current.row], current.column)));
  }

  return { rest };
}
