/** What is asked about all runs: thumbnails, and what the others have to offer for overlays and comparison. */
import { runsAlike } from "./compare.js";
import { remember } from "./data.js";
import { partnerOf, thumbnailOf } from "./model.js";
import { particular, usualNorm } from "./tables.js";

const OTHERS = 4;
/** Small pictures that are asked for at once: the heatmap and its details keep the other connections. */
const AT_ONCE = 3;
const COLUMNS = 80;
const ROWS = 64;

/** @param {RunRow} row */
const isReadable = ({ status }) => status !== "not_watched" && status !== "unreadable";

/** @param {Source} source */
export function createOthers(source) {
  const ask = remember(source, 2 * OTHERS);
  let isAsking = false;

  /**
   * Small pictures of the runs that want one, a few at a time, until none does. They are drawn and not kept.
   * @param {() => RunRow[]} wanting
   * @param {(row: RunRow, picture: Picture|null) => void} draw
   */
  async function thumbnails(wanting, draw) {
    if (isAsking) return;
    isAsking = true;
    for (let rows = wanting(); rows.length; rows = wanting()) {
      await Promise.all(rows.slice(0, AT_ONCE).map(async (row) => draw(row, await thumbnail(row))));
    }
    isAsking = false;
  }

  /** @param {RunRow} row */
  async function thumbnail(row) {
    if (!isReadable(row) || !Object.keys(row.layers).length) return null;
    const quantity = particular().default;
    const query = { run: row.run, quantity, norm: usualNorm(), columns: COLUMNS, most_rows: ROWS };
    const frame = await source.heatmap(query).catch(() => null);
    return frame?.columns ? thumbnailOf(frame, quantity) : null;
  }

  /**
   * A few other runs with the same layers, those with another verdict first: they show what is different.
   * @param {RunRow[]} runs
   * @param {View} view
   */
  async function partners(runs, { rowOfRun: row, optimizer }) {
    const alike = runsAlike(runs, row, optimizer);
    const byVerdict = [...alike].sort((a, b) => Number(a.status === row.status) - Number(b.status === row.status));
    const rows = byVerdict.slice(0, OTHERS);
    const docs = await Promise.all(rows.map((other) => ask("run", { run: other.run }, other.stamp)));
    return docs.flatMap((doc, i) => partnerOf(doc, rows[i], optimizer) ?? []);
  }
  return { thumbnails, partners };
}
