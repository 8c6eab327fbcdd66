/** What is asked for after the heatmap stands: the profile of this and other runs, the lines, and the chosen layer. */
import { ZERO } from "./colours.js";
import { isComparable } from "./compare.js";
import { isMerged } from "./describe.js";
import { lineName } from "./format.js";
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
 * The exact sample at the cursor where the heatmap shows merged ones; null where it is exact already.
 * @param {Ask} ask
 * @param {Model} model
 * @returns {Promise<Profile|null>}
 */
export async function exactCells(ask, model) {
  const { frame, column, compare, scale, run, optimizer, version, quantity, rowOfRun } = model;
  if (compare || frame.steps[column] === frame.lastSteps[column]) return null;
  const query = { run: run.run, optimizer, version: version.version, quantity, step: stepOf(model) };
  const { step, last_step: lastStep, values } = await ask("column", query, rowOfRun.stamp);
  return { step, lastStep, cells: toCells(Float32Array.from(values), scale) };
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

/** A little beyond either end of the scale, where a value lies off it. */
const BEYOND = 0.035;

/**
 * Places on the scale; NaN where there is nothing to draw.
 * @param {number[]} values
 * @param {Scale} scale
 */
function toPlaces(values, scale) {
  return values.map((value) => {
    const place = value === -1 || !Number.isFinite(value) ? NaN : scale.position(value);
    return place === ZERO ? -BEYOND : Math.min(Math.max(place, -BEYOND), 1 + BEYOND);
  });
}

const DEEP = 8;

/**
 * Networks of very different depth say nothing about each other, and shallow ones have no depth to speak of.
 * @param {string[]} layers
 * @param {string[]} others
 */
function isAboutAsDeep(layers, others) {
  const [few, many] = [layers.length, others.length].sort((a, b) => a - b);
  return layers.length === others.length || (few >= DEEP && many <= 2 * few);
}

/**
 * Profiles of other runs at the same step: of the same architecture if there are any, else by depth.
 * @param {Ask} ask
 * @param {Model} model
 * @param {Partner[]} others
 * @returns {Promise<Overlay[]>}
 */
export async function overlaysOf(ask, model, others) {
  if (model.compare) return [];
  const { quantity, scale, layers, palette } = model;
  const able = others.filter((other) => other.quantities.includes(quantity) && isAboutAsDeep(layers, other.layers));
  const alike = able.filter((other) => isComparable(layers, other.layers));
  const chosen = (alike.length ? alike : able).slice(0, OVERLAYS);
  return Promise.all(
    chosen.map(async (other, i) => {
      const { run, optimizer, version, stamp } = other;
      const { values } = await ask("column", { run, optimizer, version, quantity, step: stepOf(model) }, stamp);
      return {
        name: other.run,
        cells: toPlaces(values, scale),
        isAligned: isComparable(layers, other.layers),
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
 * @returns {Promise<LineData[]>}
 */
export async function linesOf(ask, model, lossTag) {
  const { run, optimizer, domain, full, rowOfRun } = model;
  const { choices: tags, lines } = run.view;
  const own = lines[optimizer] ?? {};
  const loss = lossTag !== null && tags.includes(lossTag) ? lossTag : (own.loss ?? run.loss_tag ?? tags[0]);
  /** @type {WantedLine[]} */
  const wanted = [
    { key: "loss", label: loss && lineName(loss), tag: loss, tags },
    ...lineTable().map(({ name, label, range, limits }) => {
      if (!limits) return { key: name, label, range, tag: own[name] };
      const tag = own[name] && own[limits];
      return { key: name, label: limits.replaceAll("_", " "), tag, limit: { label, tag: own[name] } };
    }),
  ];
  const margin = domain[1] - domain[0];
  const isWhole = domain[0] === full[0] && domain[1] === full[1];
  const part = isWhole ? {} : { from: Math.floor(domain[0] - margin), to: Math.ceil(domain[1] + margin) };
  const dataOf = (/** @type {string} */ tag) =>
    ask("scalars", { run: run.run, tag, points: POINTS, ...part }, rowOfRun.stamp);
  /** @type {(line: {tag: string, limit?: WantedLine["limit"]}) => Promise<Pick<LineData, "data"|"limit">>} */
  const numbersOf = async ({ tag, limit }) => {
    const [data, limits] = await Promise.all([dataOf(tag), limit && dataOf(limit.tag)]);
    return limit && limits ? { data, limit: { label: limit.label, data: limits } } : { data };
  };
  const loaded = wanted.flatMap(({ tag, limit, ...line }) =>
    tag ? numbersOf({ tag, limit }).then((numbers) => ({ ...line, tag, ...numbers })) : [],
  );
  return Promise.all(loaded);
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
    frame: distribution,
    sequence,
    alerts: alerts.filter((alert) => alert.layer === layer),
  };
}
