/** The list of runs as TensorBoard's own selection leaves it, and what is said of the chosen one beside the heatmap. */
import { formatAge, formatStep } from "./format.js";
import { address } from "./link.js";
import { selected } from "./selection.js";

/** @param {{store: Store, scene: Scene, page: Page}} parts */
export function createListing({ store, scene, page }) {
  const selection = () => selected(address(), scene.runs.map(({ run }) => run));

  /** The runs that TensorBoard's own selection leaves; all of them if that is asked for. */
  function offered() {
    if (store.get().all) return scene.runs;
    const left = selection();
    return scene.runs.filter(({ run }) => left.has(run));
  }

  /**
   * List the runs anew; the chosen one is there whatever TensorBoard selects.
   * @param {string|null} chosen
   */
  function update(chosen) {
    const rows = offered();
    const own = scene.runs.filter((row) => row.run === chosen && !rows.includes(row));
    page.strip.update([...own, ...rows], scene.runs.length - selection().size, chosen, store.get());
  }

  /**
   * Whether the chosen run goes on, and how far it has come.
   * @param {string|null} chosen
   * @returns {[string, RunRow["state"]]}
   */
  function progress(chosen) {
    const row = scene.runs.find(({ run }) => run === chosen);
    if (!row) return ["", "unknown"];
    const step = row.last_step === null ? [] : [`step ${formatStep(row.last_step)}`];
    const age = row.state === "live" ? [] : [formatAge(Date.now() / 1000 - row.wall_time)];
    return [[row.state_text, ...step, ...age].join(" · "), row.state];
  }
  return { offered, update, progress };
}
