/** One cell of the heatmap in words, for the tooltip, for screen readers and for the CSV. */
import { NOT_COMPARED } from "./compare.js";
import { formatNumber, formatStep, formatSteps, formatValue } from "./format.js";
import { cellWords, labelOf, quantityOf } from "./tables.js";

/**
 * @param {number} value
 * @param {string} quantity
 */
function differenceText(value, quantity) {
  if (value === NOT_COMPARED) return "only in one of the runs";
  if (Number.isNaN(value)) return `${cellWords().nonfinite} in one of the runs`;
  const { scale } = quantityOf(quantity);
  if (scale === "fraction") return `${formatNumber(100 * value)} percentage points`;
  if (scale !== "log") return formatNumber(value);
  const factor = Number.isFinite(value) ? `×${formatNumber(10 ** value)} ` : "";
  return `${factor}(${value > 0 ? "+" : ""}${formatNumber(value, 3)} orders of magnitude)`;
}

/**
 * Whether a column, or any of them, stands for several steps each of which is on record.
 * @param {Frame} frame
 * @param {number} [column]
 */
export function isMerged({ counts = [], counted }, column) {
  return counted === "steps" && (column === undefined ? counts.some((count) => count > 1) : counts[column] > 1);
}

/**
 * The value of a cell as text; where it stands for several steps, the largest and the mean of them.
 * @param {Model} model
 * @param {Row} row
 * @param {number} column
 */
function valueText({ frame, quantity, compare, means }, row, column) {
  const value = frame.values[column * frame.rows + row.index];
  if (compare) return differenceText(value, quantity);
  const text = formatValue(value === NOT_COMPARED ? -1 : value, quantity);
  if (!isMerged(frame, column) || !(value > 0 || Number.isNaN(value))) return text;
  const mean = means && row.layers.length === 1 ? means[column * frame.rows + row.index] : NaN;
  return `up to ${text}${mean > 0 ? `, mean ${formatValue(mean, quantity)}` : ""}`;
}

/**
 * Which steps a column stands for, and how many of them are known.
 * @param {Model} model
 * @param {number} column
 */
function whenText({ frame }, column) {
  const [first, last] = [frame.steps[column], frame.lastSteps[column]];
  const text = formatSteps(first, last);
  if (!isMerged(frame, column) || !frame.counts) return text;
  const [known, all] = [frame.counts[column], last - first + 1];
  return `${text} (${known === all ? "" : `${formatStep(known)} of `}${formatStep(all)} steps)`;
}

/**
 * What was merged into a cell.
 * @param {Model} model
 * @param {Row} row
 * @param {number} column
 */
function mergedText({ frame }, row, column) {
  const samples = frame.counts?.[column] ?? (frame.steps[column] === frame.lastSteps[column] ? 1 : null);
  const parts = [];
  if (row.layers.length > 1) parts.push(`${row.layers.length} layers`);
  if (samples !== 1 && !isMerged(frame, column)) parts.push(samples ? `${samples} samples` : "several samples");
  return parts.length ? `largest of ${parts.join(", ")}` : "";
}

/**
 * @param {Model} model
 * @param {Row} row
 * @param {number} column
 */
export function describe(model, row, column) {
  const { frame, quantity, compare } = model;
  const { label } = quantityOf(quantity);
  const notes = [mergedText(model, row, column)];
  if (compare && "here" in frame) {
    const place = column * frame.rows + row.index;
    const own = formatValue(frame.here[place], quantity);
    const other = formatValue(frame.there[place], quantity);
    notes.push(`${model.run.run}: ${own}`, `${compare}: ${other}`);
  }
  return {
    name: row.label,
    when: whenText(model, column),
    label: labelOf(model).replace(label, label.toLowerCase()),
    value: valueText(model, row, column),
    notes: notes.filter(Boolean),
  };
}

/**
 * The same as one sentence.
 * @param {ReturnType<typeof describe>} cell
 */
export function sentence({ name, when, label, value, notes }) {
  return `${[`${name}, ${when}: ${label} ${value}`, ...notes].join(", ")}.`;
}
