/** What is asked for after the heatmap stands: the profile of this and other runs, the lines, and the chosen layer. */
import { ZERO } from "./colours.js";
import { isComparable } from "./compare.js";
import { isMerged } from "./describe.js";
import { lineName } from "./format.js";
import { shortener } from "./names.js";
import { toCells } from "./scale.js";
import { lineTable, particular } from "./tables.js";

const OVERLAYS = 4;
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
const POINTS = 2000;

/**
 * The step of the cursor, for the server; in the last column, which may stand for several samples, that of the newest.
 * @param {Model} model
 */
const stepOf = ({ frame, column }) => (column === frame.columns - 1 ? frame.lastSteps : frame.steps)[column];

/**
 * The exact sample at the cursor where the heatmap shows merged ones, and how far layers that share a row differ; null
 * where the heatmap says it all.
 * @param {Ask} ask
 * @param {Model} model
 * @returns {Promise<Profile|null>}
 */
export async function exactCells(ask, model) {
  const { frame, column, compare, scale, run, optimizer, version, quantity, rowOfRun } = model;
  const isShared = model.rows.some(({ layers }) => layers.length > 1);
  if (compare || (!isShared && frame.steps[column] === frame.lastSteps[column])) return null;
  const { rows, norm } = model.query;
  const query = { run: run.run, optimizer, version: version.version, quantity, step: stepOf(model), rows, norm };
  const { step, last_step: lastStep, values, lows, medians } = await ask("column", query, rowOfRun.stamp);
  const cellsOf = (/** @type {number[]} */ numbers) => toCells(Float32Array.from(numbers), scale);
  const spread = lows && medians ? { lows: cellsOf(lows), medians: cellsOf(medians) } : {};
  return { step, lastStep, cells: cellsOf(values), ...spread };
}

/**
 * The means of the steps that share a column; null where no column stands for several of them.
 * @param {Ask} ask
 * @param {Model} model
 */
export async function meansOf(ask, { frame, compare, query, rowOfRun }) {
  if (compare || !isMerged(frame)) return null;
  return (await ask("heatmap", { ...query, statistic: "mean" }, rowOfRun.stamp)).values;
}

/**
 * Places on the scale, also beyond its ends; NaN where there is nothing to draw.
 * @param {number[]} values
 * @param {Scale} scale
 */
function toPlaces(values, scale) {
  return values.map((value) => {
    const place = value === -1 || !Number.isFinite(value) ? NaN : scale.position(value);
    return place === ZERO ? -Infinity : place;
  });
}

/**
 * Profiles of other runs with the same layers, at the same step.
 * @param {Ask} ask
 * @param {Model} model
 * @param {Partner[]} others
 * @returns {Promise<Overlay[]>}
 */
export async function overlaysOf(ask, model, others) {
  if (model.compare) return [];
  const { quantity, norm, scale, layers, palette } = model;
  const isShown = (/** @type {Partner} */ other) =>
    other.quantities.includes(quantity) && (!norm || other.norms[quantity]?.includes(norm));
  const alike = others.filter((other) => isComparable(layers, other.layers) && isShown(other));
  const chosen = alike.slice(0, OVERLAYS);
  return Promise.all(
    chosen.map(async (other, i) => {
      const { run, optimizer, version, stamp } = other;
      const { rows } = model.query;
      const query = { run, optimizer, version, quantity, step: stepOf(model), rows, norm: model.query.norm };
      const { values } = await ask("column", query, stamp);
      return {
        name: other.run,
        cells: toPlaces(values, scale),
        colour: palette.overlays[i],
        dash: DASHES[i],
      };
    }),
  );
}

/**
 * Which scalars are drawn: the loss, and what clipping did.
 * @param {Ask} ask
 * @param {Model} model
 * @param {string|null} lossTag
 * @param {RunRow|undefined} other The run that this one is compared with.
 * @returns {Promise<LineData[]>}
 */
export async function linesOf(ask, model, lossTag, other) {
  const { run, optimizer, domain, full, rowOfRun } = model;
  const { choices: tags, lines } = run.view;
  const own = lines[optimizer] ?? {};
  const loss = lossTag !== null && tags.includes(lossTag) ? lossTag : (own.loss ?? run.loss_tag ?? tags[0]);
  /** @type {WantedLine[]} */
  const wanted = [
    { key: "loss", label: loss && lineName(loss), tag: loss, tags },
    ...(other ? [await lossOf(ask, other, optimizer, loss, run.run)] : []),
    ...lineTable().map(({ name, label, range, limits }) => {
      if (!limits) return { key: name, label, range, tag: own[name] };
      const tag = own[name] && own[limits];
      return { key: name, label: limits.replaceAll("_", " "), tag, limit: { label, tag: own[name] } };
    }),
  ];
  const margin = domain[1] - domain[0];
  const isWhole = domain[0] === full[0] && domain[1] === full[1];
  const part = isWhole ? {} : { from: Math.floor(domain[0] - margin), to: Math.ceil(domain[1] + margin) };
  const dataOf = (/** @type {string} */ tag, /** @type {RunRow} */ of = rowOfRun) =>
    ask("scalars", { run: of.run, tag, points: POINTS, ...part }, of.stamp);
  /** @type {(line: Pick<WantedLine, "limit"|"of"> & {tag: string}) => Promise<Pick<LineData, "data"|"limit">>} */
  const numbersOf = async ({ tag, limit, of }) => {
    const [data, limits] = await Promise.all([dataOf(tag, of), limit && dataOf(limit.tag)]);
    return limit && limits ? { data, limit: { label: limit.label, data: limits } } : { data };
  };
  const loaded = wanted.flatMap(({ tag, limit, of, ...line }) =>
    tag ? numbersOf({ tag, limit, of }).then((numbers) => ({ ...line, tag, ...numbers })) : [],
  );
  return Promise.all(loaded);
}

/**
 * The loss of another run: under the same name, if it has one of that name.
 * @param {Ask} ask
 * @param {RunRow} other
 * @param {string} optimizer
 * @param {string|null} like
 * @param {string} own The run that is shown.
 * @returns {Promise<WantedLine>}
 */
async function lossOf(ask, other, optimizer, like, own) {
  const { view, loss_tag: guessed } = await ask("run", { run: other.run }, other.stamp);
  const isThere = like !== null && view.choices.includes(like);
  const tag = isThere ? like : (view.lines[optimizer]?.loss ?? guessed ?? undefined);
  const name = shortener([own, other.run])(other.run);
  return { key: "other-loss", label: `${tag && lineName(tag)}, ${name}`, tag, of: other };
}

/**
 * Everything about the chosen layer.
 * @param {Ask} ask
 * @param {Model} model
 * @param {number} columns
 * @returns {Promise<LayerDetail>}
 */
export async function layerOf(ask, model, columns) {
  const { run, optimizer, version, layer, zoom, alerts, frame, rowOfRun } = model;
  const query = { run: run.run, optimizer, version: version.version, layer };
  const step = stepOf(model);
  const margin = frame.steps.length > 1 ? frame.steps[1] - frame.steps[0] : 1;
  const reach = 20 * Math.max(margin, 1);
  const part = zoom ? { from: Math.floor(zoom[0] - reach), to: Math.ceil(zoom[1] + reach) } : {};
  const hasHistogram = version.quantities.includes(particular().histogram);
  const [numbers, distribution, sequence] = await Promise.all([
    ask("layer", { ...query, step }, rowOfRun.stamp),
    hasHistogram ? ask("distribution", { ...query, ...part, columns }, rowOfRun.stamp) : null,
    version.sequences.includes(layer) ? ask("sequence", { ...query, step }, rowOfRun.stamp) : null,
  ]);
  return {
    layer,
    step: numbers.step,
    lastStep: numbers.last_step,
    numbers: numbers.numbers,
    range: numbers.grad_norm_range,
    rms: numbers.grad_norm_rms,
    frame: distribution,
    sequence,
    alerts: alerts.filter((alert) => alert.layer === layer),
  };
}
