/** Which runs are listed, and in what order. */
import { titleOf } from "./names.js";

/** @type {Record<Sort, string>} */
export const SORTS = { sickest: "the sickest first", newest: "the newest first", name: "by name" };

const byName = new Intl.Collator("en", { numeric: true });

/** @type {Record<Sort, (a: RunRow, b: RunRow) => number>} The server lists the sickest first. */
const COMPARE = {
  sickest: () => 0,
  newest: (a, b) => b.wall_time - a.wall_time,
  name: (a, b) => byName.compare(a.run, b.run),
};

/**
 * Whether every word of what is looked for stands in the name, or in what is said of the run.
 * @param {RunRow} row
 * @param {string} find
 */
function holds({ run, status, headline }, find) {
  const text = `${titleOf(run)} ${status.replaceAll("_", " ")} ${headline}`.toLowerCase();
  return find.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/**
 * The runs to list.
 * @param {RunRow[]} rows
 * @param {Pick<State, "find"|"verdict"|"sort">} wanted
 */
export function listed(rows, { find, verdict, sort }) {
  const found = rows.filter((row) => (!find || holds(row, find)) && (!verdict.length || verdict.includes(row.status)));
  return sort ? [...found].sort(COMPARE[sort] ?? COMPARE.sickest) : found;
}

/**
 * How many runs have each verdict, the sickest first.
 * @param {RunRow[]} rows
 * @param {string} find
 * @returns {Map<Status, number>}
 */
export function counts(rows, find) {
  const found = /** @type {Map<Status, number>} */ (new Map());
  for (const row of rows) found.set(row.status, (found.get(row.status) ?? 0) + (!find || holds(row, find) ? 1 : 0));
  return found;
}
