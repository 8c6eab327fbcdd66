/** The axis of steps that the heatmap, the lanes and the lines share. */

/** A gap between samples this many times wider than both gaps beside it is a hole in the log and stays empty. */
const HOLE = 10;

/**
 * Where each column of a frame starts and ends on the axis: half-way to its neighbours.
 * @param {{steps: number[], lastSteps: number[]}} frame
 * @returns {Spans}
 */
export function spansOf({ steps, lastSteps }) {
  const count = steps.length;
  const gaps = Float64Array.from({ length: Math.max(count - 1, 0) }, (_, i) => steps[i + 1] - lastSteps[i]);
  const reach = (/** @type {number} */ i) => {
    const beside = Math.max(gaps[i - 1] ?? 0, gaps[i + 1] ?? 0);
    return (beside > 0 && gaps[i] > HOLE * beside ? beside : gaps[i]) / 2;
  };
  const left = new Float64Array(count);
  const right = new Float64Array(count);
  for (let i = 0; i < count; i += 1) {
    const [before, after] = [i ? reach(i - 1) : null, i + 1 < count ? reach(i) : null];
    left[i] = steps[i] - (before ?? after ?? 0.5);
    right[i] = lastSteps[i] + (after ?? before ?? 0.5);
  }
  return { left, right };
}

/**
 * The axis that shows all columns.
 * @param {{steps: number[], lastSteps: number[]}} frame
 * @returns {Interval}
 */
export function domainOf(frame) {
  if (!frame.steps.length) return [0, 1];
  const { left, right } = spansOf(frame);
  return [left[0], right[right.length - 1]];
}

/**
 * The column that covers a step; -1 in a hole or outside.
 * @param {Spans} spans
 * @param {number} step
 */
export function columnAt({ left, right }, step) {
  let [low, high] = [0, left.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (left[middle] <= step) low = middle;
    else high = middle - 1;
  }
  return left.length && step >= left[low] && step <= right[low] ? low : -1;
}

/**
 * Where a column is marked on the axis: at the middle of its steps; null if there is none.
 * @param {{steps: number[], lastSteps: number[]}} frame
 * @param {number} column
 */
export function middleOf({ steps, lastSteps }, column) {
  return column in steps ? (steps[column] + lastSteps[column]) / 2 : null;
}

/**
 * The column nearest to a step.
 * @param {{steps: number[], lastSteps: number[]}} frame
 * @param {number} step
 */
export function nearestColumn({ steps, lastSteps }, step) {
  let best = -1;
  let distance = Infinity;
  for (let i = 0; i < steps.length; i += 1) {
    const away = Math.max(steps[i] - step, step - lastSteps[i], 0);
    if (away < distance) [best, distance] = [i, away];
  }
  return best;
}

/**
 * For each of `width` pixels the first and last column that it shows; -1 for none.
 * @param {{steps: number[]}} frame
 * @param {Spans} spans
 * @param {Interval} domain
 * @param {number} width
 */
export function columnsOfPixels(frame, spans, domain, width) {
  const first = new Int32Array(width).fill(-1);
  const last = new Int32Array(width).fill(-1);
  const perPixel = (domain[1] - domain[0]) / width;
  const inPixel = (/** @type {number} */ column) =>
    Math.floor(((spans.left[column] + spans.right[column]) / 2 - domain[0]) / perPixel);
  for (let column = 0; column < frame.steps.length; column += 1) {
    const x = inPixel(column);
    if (x < 0 || x >= width) continue;
    if (first[x] < 0) first[x] = column;
    last[x] = column;
  }
  for (let x = 0; x < width; x += 1) {
    if (first[x] < 0) first[x] = last[x] = columnAt(spans, domain[0] + (x + 0.5) * perPixel);
  }
  return { first, last };
}

/**
 * Round steps for ticks, about `count` of them.
 * @param {Interval} domain
 * @param {number} count
 */
export function stepTicks([from, to], count) {
  const rough = (to - from) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const stride = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? 10 * power);
  const ticks = [];
  for (let tick = Math.ceil(from / stride) * stride; tick <= to; tick += stride) ticks.push(tick);
  return ticks;
}

/**
 * The place of a step in a box.
 * @param {number} step
 * @param {Interval} domain
 * @param {{x: number, width: number}} box
 */
export const toX = (step, domain, box) => box.x + ((step - domain[0]) / (domain[1] - domain[0])) * box.width;

/**
 * The step at a place in a box.
 * @param {number} x
 * @param {Interval} domain
 * @param {{x: number, width: number}} box
 */
export const toStep = (x, domain, box) => domain[0] + ((x - box.x) / box.width) * (domain[1] - domain[0]);

/**
 * `domain` scaled by `factor` around `centre`, kept within `full` and at least one step wide.
 * @param {Interval} domain
 * @param {Interval} full
 * @param {number} factor
 * @param {number} centre
 * @returns {Interval}
 */
export function zoomed(domain, full, factor, centre) {
  const width = Math.min(Math.max((domain[1] - domain[0]) * factor, 1), full[1] - full[0]);
  const from = centre - ((centre - domain[0]) / (domain[1] - domain[0])) * width;
  const start = Math.min(Math.max(from, full[0]), full[1] - width);
  return [start, start + width];
}
