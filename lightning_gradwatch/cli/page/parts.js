/** Parts of a frame, with neighbours merged as the server merges them. */
import { rowsIn } from "../../tensorboard/static/spans.js";

/**
 * The places of what began by step `to` and ended no earlier than step `from`.
 * @param {number[]} begins
 * @param {number[]} ends
 * @param {number|undefined} from
 * @param {number|undefined} to
 */
export function placesWithin(begins, ends, from, to) {
  const isInside = (/** @type {number} */ i) => ends[i] >= (from ?? -Infinity) && begins[i] <= (to ?? Infinity);
  return begins.map((_, i) => i).filter(isInside);
}

/**
 * The larger one; NaN is larger than anything.
 * @param {number} a
 * @param {number} b
 */
const larger = (a, b) => (Number.isNaN(a) || a > b ? a : b);

/**
 * The mean in the logarithm of what is positive and finite; else the largest.
 * @param {number[]} values
 * @param {number[]} weights
 */
export function meanOf(values, weights) {
  let [sum, total] = [0, 0];
  values.forEach((value, i) => {
    if (!(value > 0 && value < Infinity)) return;
    sum += weights[i] * Math.log(value);
    total += weights[i];
  });
  return total ? Math.exp(sum / total) : values.reduce(larger);
}

/**
 * Where columns begin that are equally many steps wide; a wider one stays as it is.
 * @param {number[]} begins
 * @param {number[]} ends
 * @param {number} most
 */
function startsOf(begins, ends, most) {
  if (begins.length <= most) return begins.map((_, i) => i);
  const [begin, end] = [begins[0], (ends.at(-1) ?? 0) + 1];
  const numbers = begins.map((first, i) => Math.floor((((first + ends[i] + 1) / 2 - begin) / (end - begin)) * most));
  return numbers.flatMap((number, i) => (number === numbers[i - 1] ? [] : [i]));
}

/**
 * The columns of a frame from step `from` to step `to`; merged if they are more than `columns`, by maximum, or else by
 * what `merge` makes of the values and of how many steps each stands for.
 * @template {Frame | HistogramFrame} Found
 * @param {Found} frame
 * @param {Query} query
 * @param {(values: number[], weights: number[]) => number} merge
 * @returns {Found}
 */
export function part(frame, { from, to, columns = Infinity }, merge = (values) => values.reduce(larger)) {
  const inside = placesWithin(frame.steps, frame.lastSteps, from, to);
  const of = (/** @type {number[]} */ numbers) => inside.map((i) => numbers[i]);
  const [begins, ends, counts] = [of(frame.steps), of(frame.lastSteps), of(frame.counts ?? frame.steps.map(() => 1))];
  const starts = startsOf(begins, ends, columns);
  const edges = [...starts, inside.length];
  const { rows } = frame;
  const values = frame.values.slice(0, starts.length * rows);
  starts.forEach((start, column) => {
    const [places, weights] = [inside, counts].map((numbers) => numbers.slice(start, edges[column + 1]));
    if (places.length === 1) {
      values.set(frame.values.subarray(places[0] * rows, (places[0] + 1) * rows), column * rows);
      return;
    }
    for (let row = 0; row < rows; row += 1) {
      values[column * rows + row] = merge(places.map((place) => frame.values[place * rows + row]), weights);
    }
  });
  return {
    ...frame, values, columns: starts.length, shape: [starts.length, rows],
    steps: starts.map((start) => begins[start]),
    lastSteps: starts.map((_, column) => ends[edges[column + 1] - 1]),
    counts: starts.map((start, column) => counts.slice(start, edges[column + 1]).reduce((a, b) => a + b)),
  };
}

/**
 * A frame whose positive numbers are divided by a number of their layer; what is zero, infinite, NaN or -1 stays so,
 * and what cannot be divided is missing.
 * @param {Frame} frame
 * @param {number[]} by
 * @returns {Frame}
 */
export function dividedBy(frame, by) {
  const [least, most] = [2 ** -149, 3.4028234663852886e38];
  const values = frame.values.map((value, i) => {
    const divisor = by[i % frame.rows];
    if (!(value > 0 && value < Infinity)) return value;
    return Number.isNaN(divisor) ? -1 : Math.min(Math.max(value / divisor, least), most);
  });
  const known = values.filter((value) => value > 0 && value < Infinity);
  const extent = known.length ? known.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, 0]) : [];
  return { ...frame, values, extent };
}

/**
 * Which layers share a row.
 * @param {Query} query
 * @param {number} layers How many there are.
 */
function sharedBy({ rows, most_rows: most = Infinity }, layers) {
  if (rows) return rowsIn(rows);
  if (most >= layers) return null;
  const edges = Array.from({ length: most + 1 }, (_, i) => Math.floor((i * layers) / most));
  return edges.slice(1).map((end, i) => Array.from({ length: end - edges[i] }, (_, place) => edges[i] + place));
}

/**
 * A frame in which layers share rows, by maximum.
 * @param {Frame} frame
 * @param {Query} query
 * @returns {Frame}
 */
export function inRows(frame, query) {
  const shared = sharedBy(query, frame.rows);
  if (!shared) return frame;
  const values = new Float32Array(frame.columns * shared.length);
  for (let column = 0; column < frame.columns; column += 1) {
    const valueOf = (/** @type {number} */ layer) => frame.values[column * frame.rows + layer];
    shared.forEach((own, row) => (values[column * shared.length + row] = own.map(valueOf).reduce(larger)));
  }
  return { ...frame, values, rows: shared.length, shape: [frame.columns, shared.length] };
}

/**
 * The smallest and the median of the layers of each row that are finite and there; -1 where there are none.
 * @param {number[]} values
 * @param {string} rows
 */
export function spreadOf(values, rows) {
  const sorted = rowsIn(rows).map((own) => {
    const there = own.map((layer) => values[layer]).filter((value) => value >= 0 && value < Infinity);
    return there.sort((a, b) => a - b);
  });
  const middle = (/** @type {number[]} */ found) =>
    (found[(found.length - 1) >> 1] + found[found.length >> 1]) / 2;
  return {
    lows: sorted.map((found) => found[0] ?? -1),
    medians: sorted.map((found) => (found.length ? middle(found) : -1)),
  };
}
