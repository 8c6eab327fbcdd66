/** What things are called: the server's tables, which page, terminal and this tab share. There is no other copy. */

/**
 * Filled by `adopt` before anything is drawn; see `tables.py`.
 * @type {Tables}
 */
const tables = {
  quantities: {}, norms: {}, particular: { default: "", horizon: "", histogram: "" },
  kinds: {}, statuses: {}, cells: {}, lines: [], least_decades: 1, viridis: [],
};

/**
 * Quantities of the users' own, as their runs declare them.
 * @type {Record<string, Quantity>}
 */
let own = {};

/**
 * Take the tables of the server.
 * @param {Tables} found
 */
export function adopt(found) {
  Object.assign(tables, found);
}

/**
 * Learn what a run calls its own quantities. Those of other runs are kept, for what is drawn already.
 * @param {Record<string, Quantity>} found
 */
export function learn(found) {
  own = { ...own, ...found };
}

/**
 * Label, hint, scale, unit and the word for "no value" of a quantity.
 * @param {string} name
 */
export const quantityOf = (name) => own[name] ?? tables.quantities[name];

/**
 * A way to show gradient norms in words; none for quantities with but one way.
 * @param {string} name
 * @returns {Norm|undefined}
 */
export const normOf = (name) => tables.norms[name];

/** The way in which gradient norms are shown where a log allows it. */
export const usualNorm = () => Object.keys(tables.norms)[0];

/**
 * What is shown, in words: the quantity, and how.
 * @param {{quantity: string, norm: string}} shown
 */
export const labelOf = ({ quantity, norm }) =>
  [quantityOf(quantity).label, normOf(norm)?.after].filter(Boolean).join(" ");

/**
 * Those of a run's quantities that can be shown, in the order of the table, the run's own last.
 * @param {string[]} names
 */
export const shown = (names) =>
  Object.keys({ ...tables.quantities, ...own }).filter((name) => names.includes(name));

/** The names of the quantities that have a place of their own. */
export const particular = () => tables.particular;

/**
 * An alert kind in words; one of a newer version has its name only.
 * @param {string} name
 */
export const kindOf = (name) => tables.kinds[name] ?? { title: name, label: name.replaceAll("_", " "), shown_by: "" };

/**
 * How a run is, as a word.
 * @param {Status} status
 */
export const statusWord = (status) => tables.statuses[status];

/** Cells that are no number, by their name. */
export const cellWords = () => tables.cells;

/** The run's numbers that are drawn as lines. */
export const lineTable = () => tables.lines;

/** What a scale in decades spans at least. */
export const leastDecades = () => tables.least_decades;

/** Even points of the colour map. */
export const viridis = () => tables.viridis;
