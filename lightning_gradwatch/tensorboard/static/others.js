/** What is asked about all runs: thumbnails, and what the others have to offer for overlays and comparison. */
import { remember } from "./data.js";
import { partnerOf, thumbnailOf } from "./model.js";
import { particular } from "./tables.js";

const OTHERS = 8;
const THUMBNAILS = 40;
const COLUMNS = 80;

/** @param {RunRow} row */
const isReadable = ({ status }) => status !== "not_watched" && status !== "unreadable";

/** @param {Source} source */
export function createOthers(source) {
  const ask = remember(source, 2 * THUMBNAILS);

  /**
   * Thumbnails of the first runs, one request after the other, so that the heatmap never waits for them.
   * @param {RunRow[]} runs
   * @param {() => boolean} isStale
   * @param {(run: string, picture: Picture|null) => void} draw
   */
  async function thumbnails(runs, isStale, draw) {
    const quantity = particular().default;
    for (const row of runs.slice(0, THUMBNAILS).filter(isReadable)) {
      const query = { run: row.run, quantity, columns: COLUMNS };
      const frame = await ask("heatmap", query, row.stamp).catch(() => null);
      if (isStale()) return;
      draw(row.run, frame?.columns ? thumbnailOf(frame, quantity) : null);
    }
  }

  /**
   * The other runs with layers of this optimizer.
   * @param {RunRow[]} runs
   * @param {string} run
   * @param {string} optimizer
   */
  async function partners(runs, run, optimizer) {
    const rows = runs.filter((row) => row.run !== run && isReadable(row)).slice(0, OTHERS);
    const docs = await Promise.all(rows.map((row) => ask("run", { run: row.run }, row.stamp)));
    return docs.flatMap((doc, i) => partnerOf(doc, rows[i], optimizer) ?? []);
  }
  return { thumbnails, partners };
}
