/** Which steps are shown, and which are asked for. */
import { columnAt, domainOf, nearestColumn } from "./steps.js";

/**
 * Steps to ask for so that cells at the edges of `zoom` are whole: one column more on either side.
 * @param {Interval} zoom
 * @param {Frame} overview
 * @param {Spans} spans
 */
export function around(zoom, overview, spans) {
  const at = (/** @type {number} */ step) => {
    const column = columnAt(spans, step);
    return column >= 0 ? column : nearestColumn(overview, step);
  };
  const [first, last] = [Math.max(at(zoom[0]) - 1, 0), Math.min(at(zoom[1]) + 1, overview.columns - 1)];
  return { from: overview.steps[first], to: overview.lastSteps[last] };
}

/**
 * `zoom` within `full`; moved along if it ended at the newest step before. Null if it shows everything.
 * @param {Interval|null} zoom
 * @param {Interval} full
 * @param {Interval|null} before
 * @returns {Interval|null}
 */
export function follow(zoom, full, before) {
  if (!zoom) return null;
  const wasAtEnd = before && zoom[1] >= before[1] - 1e-9;
  const shift = wasAtEnd ? full[1] - before[1] : 0;
  const from = Math.max(zoom[0] + shift, full[0]);
  const to = Math.min(zoom[1] + shift, full[1]);
  return to > from && to - from < full[1] - full[0] - 1e-9 ? [from, to] : null;
}

/**
 * The axis that shows a run. Where most of its steps are on record it goes from the first to the last of them, whatever
 * is shown: a single sample is then as narrow as the step that it is from.
 * @param {Version} version
 * @param {Frame} overview
 * @returns {Interval}
 */
export function axisOf({ first_step: first, last_step: last, num_samples: count }, overview) {
  const [from, to] = [first - 0.5, last + 0.5];
  if (to - from < 1.5 * count) return [from, to];
  const [low, high] = domainOf(overview);
  return [Math.min(low, from), Math.max(high, to)];
}
