/** A source whose data stands in the page: the same methods and the same answers as over HTTP. */
import { decodeFrame } from "../../tensorboard/static/frame.js";
import { SourceError, toNumber, toNumbers } from "../../tensorboard/static/source.js";
import { dividedBy, inRows, meanOf, part, placesWithin, spreadOf } from "./parts.js";

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
 * @property {Record<string, (number|string)[]>} divisors What norms of layers are divided by, by the way to show them.
 * @property {Record<string, Fold[]>} plans How layers share rows, by that way and by whether layers are hidden.
 * @property {Record<string, string>} heatmaps By quantity.
 * @property {Record<string, string>} steps Of the norms of every step: the lowest and the mean of each column.
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
 * @param {Frame} frame
 * @param {number|undefined} step
 */
function columnOf({ steps, lastSteps, values, rows }, step) {
  const place = placeOf(steps, step);
  const column = Array.from(values.subarray(place * rows, (place + 1) * rows));
  return { step: steps[place], last_step: lastSteps[place], values: column };
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
    return shownAs(frameOf(found(heatmaps[query.quantity ?? ""], query.quantity)), query);
  };
  /**
   * Gradient norms in the way that is asked for, where there are several.
   * @param {Frame} frame
   * @param {Query} query
   */
  const shownAs = (frame, query) => {
    const isNorm = query.quantity === tables.particular.default;
    const by = isNorm && query.norm ? versionOf(query).divisors[query.norm] : undefined;
    return by ? dividedBy(frame, toNumbers(by)) : frame;
  };
  /**
   * The document of a run, in which rows are shared as by the query.
   * @param {Query} query
   * @returns {RunDocument}
   */
  const documentOf = (query) => {
    const { document, versions } = runOf(query);
    const planned = (/** @type {string} */ name, /** @type {Version} */ version) => {
      const { plans } = found(versions.find((v) => v.optimizer === name && v.version === version.version), "layers");
      const norm = query.norm ?? version.norms[tables.particular.default]?.[0];
      const rows = plans[query.hide ? `${norm} without vectors` : `${norm}`] ?? version.rows;
      return { ...version, rows };
    };
    const optimizers = document.optimizers.map(({ name, versions: own }) => ({
      name, versions: own.map((version) => planned(name, version)),
    }));
    return { ...document, optimizers };
  };
  /**
   * The lowest, the mean and the highest norm of a layer in the column of a step.
   * @type {(version: EmbeddedVersion, row: number, step?: number) => number[]|null}
   */
  const rangeOf = ({ heatmaps, ranges, steps: { low, mean } }, row, step) => {
    if (ranges) return columnOf(frameOf(ranges), step).values.slice(3 * row, 3 * row + 3);
    if (!low) return null;
    return [low, mean, heatmaps[tables.particular.default]].map((text) => columnOf(frameOf(text), step).values[row]);
  };
  return {
    tables: async () => tables,
    runs: async () => runs.map(({ row }) => row),
    run: async (query) => documentOf(query),
    heatmap: async (query) => {
      if (query.statistic !== "mean") return inRows(part(heatmapOf(query), query), query);
      const means = shownAs(frameOf(found(versionOf(query).steps.mean, "means")), query);
      return inRows(part(means, query, meanOf), query);
    },
    column: async (query) => {
      const whole = heatmapOf(query);
      const column = columnOf(inRows(whole, query), query.step);
      return query.rows ? { ...column, ...spreadOf(columnOf(whole, query.step).values, query.rows) } : column;
    },
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
      const version = versionOf(query);
      const row = layersOf(query).indexOf(query.layer ?? "");
      const columns = Object.entries(version.heatmaps).map(([name, text]) => {
        return { name, ...columnOf(frameOf(text), query.step) };
      });
      const { step, last_step } = columns.find(({ name }) => name === tables.particular.default) ?? columns[0];
      const numbers = Object.fromEntries(columns.map(({ name, values }) => [name, values[row]]));
      const [norm, by] = [numbers[tables.particular.default], toNumber(version.divisors.rms?.[row])];
      const rms = norm > 0 && by > 0 ? norm / by : null;
      return { step, last_step, numbers, grad_norm_range: rangeOf(version, row, query.step), grad_norm_rms: rms };
    },
    scalars: async (query) => {
      const lists = found(runOf(query).scalars[query.tag ?? ""], query.tag);
      const inside = placesWithin(lists.steps, lists.last_steps ?? lists.steps, query.from, query.to);
      const seen = Object.entries(lists).map(([name, numbers]) => [name, toNumbers(inside.map((i) => numbers[i]))]);
      return /** @type {ScalarData} */ (Object.fromEntries(seen));
    },
  };
}
