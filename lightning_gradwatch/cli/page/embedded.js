/** A source whose data stands in the page: the same methods and the same answers as over HTTP. */
import { decodeFrame } from "../../tensorboard/static/frame.js";
import { SourceError, toNumber, toNumbers } from "../../tensorboard/static/source.js";

/**
 * What `page/data.py` puts into the page: frames are in base64, the samples of a sequence as the server sends them.
 * @typedef {{tables: Tables, runs: EmbeddedRun[]}} Data
 * @typedef {Object} EmbeddedRun
 * @property {RunRow} row
 * @property {RunDocument} document
 * @property {EmbeddedVersion[]} versions
 * @property {Record<string, any>} scalars By tag.
 * @typedef {Object} EmbeddedVersion
 * @property {string} optimizer
 * @property {number} version
 * @property {Record<string, string>} heatmaps By quantity.
 * @property {string|null} ranges
 * @property {Record<string, string>} distributions By layer.
 * @property {Record<string, any[]>} sequences By layer.
 */

/** @param {string} text */
const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/**
 * The data of the page, unpacked.
 * @param {string} text
 * @returns {Promise<Data>}
 */
export async function unpack(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/**
 * @param {string} text
 * @returns {any}
 */
const frameOf = (text) => decodeFrame(bytesOf(text).buffer);

/**
 * The place of the column at `step`, or of the nearest before it, or else of the first.
 * @param {number[]} steps
 * @param {number} [step]
 */
function placeOf(steps, step = Infinity) {
  const after = steps.findIndex((found) => found > step);
  return Math.max((after < 0 ? steps.length : after) - 1, 0);
}

/**
 * The places of what began by step `to` and ended no earlier than step `from`.
 * @param {number[]} begins
 * @param {number[]} ends
 * @param {number|undefined} from
 * @param {number|undefined} to
 */
function placesWithin(begins, ends, from, to) {
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
 * The columns of a frame from step `from` to step `to`, merged by maximum if they are more than `columns`.
 * @template {Frame | HistogramFrame} Found
 * @param {Found} frame
 * @param {Query} query
 * @returns {Found}
 */
function part(frame, { from, to, columns = Infinity }) {
  const inside = placesWithin(frame.steps, frame.lastSteps, from, to);
  const count = Math.min(columns, inside.length);
  const starts = Array.from({ length: count }, (_, i) => Math.floor((i * inside.length) / count));
  const ends = starts.map((_, i) => starts[i + 1] ?? inside.length);
  const { rows } = frame;
  const shape = [count, rows];
  const values = frame.values.slice(0, count * rows);
  starts.forEach((start, column) => {
    for (let row = 0; row < rows; row += 1) {
      let value = frame.values[inside[start] * rows + row];
      for (let i = start + 1; i < ends[column]; i += 1) value = larger(frame.values[inside[i] * rows + row], value);
      values[column * rows + row] = value;
    }
  });
  const steps = starts.map((start) => frame.steps[inside[start]]);
  const lastSteps = ends.map((end) => frame.lastSteps[inside[end - 1]]);
  return { ...frame, steps, lastSteps, columns: count, shape, values };
}

/**
 * @param {Frame} frame
 * @param {number|undefined} step
 */
function columnOf({ steps, values, rows }, step) {
  const place = placeOf(steps, step);
  return { step: steps[place], values: Array.from(values.subarray(place * rows, (place + 1) * rows)) };
}

/**
 * @template Found
 * @param {Found|undefined} what
 * @param {string|undefined} name
 */
function found(what, name) {
  if (what === undefined) throw new SourceError(`This page does not hold ${name}.`);
  return what;
}

/**
 * @param {Data} data
 * @returns {Source}
 */
export function embeddedSource({ tables, runs }) {
  const runOf = (/** @type {Query} */ { run }) => found(runs.find(({ row }) => row.run === run), `the run ${run}`);
  const versionOf = (/** @type {Query} */ query) => {
    const { versions } = runOf(query);
    const own = versions.filter(({ optimizer }) => optimizer === (query.optimizer ?? versions[0].optimizer));
    const newest = Math.max(...own.map(({ version }) => version));
    return found(own.find(({ version }) => version === (query.version ?? newest)), "these layers");
  };
  const layersOf = (/** @type {Query} */ query) => {
    const { optimizer: name, version: number } = versionOf(query);
    const whole = runOf(query).document.optimizers.find((optimizer) => optimizer.name === name);
    return whole?.versions.find(({ version }) => version === number)?.layers ?? [];
  };

  /** @type {(query: Query) => Frame} */
  const heatmapOf = (query) => {
    const { heatmaps } = versionOf(query);
    return frameOf(found(heatmaps[query.quantity ?? ""], query.quantity));
  };
  return {
    tables: async () => tables,
    runs: async () => runs.map(({ row }) => row),
    run: async (query) => runOf(query).document,
    heatmap: async (query) => part(heatmapOf(query), query),
    column: async (query) => columnOf(heatmapOf(query), query.step),
    distribution: async (query) => {
      const { distributions } = versionOf(query);
      return part(frameOf(found(distributions[query.layer ?? ""], "this histogram")), query);
    },
    sequence: async (query) => {
      const samples = found(versionOf(query).sequences[query.layer ?? ""], "this sequence");
      const sample = samples[placeOf(samples.map(({ step }) => step), query.step)];
      return { ...sample, norms: toNumbers(sample.norms), horizon: toNumber(sample.horizon) };
    },
    layer: async (query) => {
      const { heatmaps, ranges } = versionOf(query);
      const row = layersOf(query).indexOf(query.layer ?? "");
      const columns = Object.entries(heatmaps).map(([name, text]) => {
        return { name, ...columnOf(frameOf(text), query.step) };
      });
      const range = ranges ? columnOf(frameOf(ranges), query.step).values.slice(3 * row, 3 * row + 3) : null;
      const { step } = columns.find(({ name }) => name === tables.particular.default) ?? columns[0];
      const numbers = Object.fromEntries(columns.map(({ name, values }) => [name, values[row]]));
      return { step, numbers, grad_norm_range: range };
    },
    scalars: async (query) => {
      const { steps, values } = found(runOf(query).scalars[query.tag ?? ""], query.tag);
      const inside = placesWithin(steps, steps, query.from, query.to);
      return { steps: inside.map((i) => steps[i]), values: toNumbers(inside.map((i) => values[i])) };
    },
  };
}
