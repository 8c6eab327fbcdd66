/** Where the data comes from: TensorBoard, over HTTP. A report can bring a source of its own with the same methods. */
import { decodeFrame } from "./frame.js";

/** @type {Record<string, number>} */
const WORDS = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

/**
 * JSON has no NaN, so the server sends a word. Only lists and maps of numbers are read so: never names or texts.
 * @param {any} value
 * @returns {number}
 */
export const toNumber = (value) => (typeof value === "string" ? WORDS[value] : value);
/** @param {any[]} values */
export const toNumbers = (values) => values.map(toNumber);

/** A failure, as a sentence for the person who looks. */
export class SourceError extends Error {}

/**
 * @param {URL|string} base
 * @param {string} path
 * @param {Partial<Query>} query
 */
async function request(base, path, query) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) url.searchParams.set(name, String(value));
  }
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new SourceError("TensorBoard does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new SourceError(body.error ?? `TensorBoard answered with status ${response.status} (${path}).`);
}

/**
 * @param {URL|string} base The address under which the plugin answers.
 * @returns {Source}
 */
export function httpSource(base) {
  /** @type {(path: string, query?: Partial<Query>) => Promise<any>} */
  const json = async (path, query = {}) => (await request(base, path, query)).json();
  /** @type {(path: string, query: Query) => Promise<any>} */
  const frame = async (path, query) => decodeFrame(await (await request(base, path, query)).arrayBuffer());
  return {
    tables: () => json("tables"),
    runs: async () => (await json("runs")).runs,
    run: (query) => json("run", query),
    heatmap: (query) => frame("heatmap", query),
    distribution: (query) => frame("distribution", query),
    column: async (query) => {
      const found = await json("column", query);
      return { ...found, values: toNumbers(found.values) };
    },
    scalars: async (query) => {
      const found = await json("scalars", query);
      const lists = Object.entries(found).map(([name, values]) => [name, toNumbers(values)]);
      return /** @type {ScalarData} */ (Object.fromEntries(lists));
    },
    sequence: async (query) => {
      const found = await json("sequence", query);
      return { ...found, norms: toNumbers(found.norms), horizon: toNumber(found.horizon) };
    },
    layer: async (query) => {
      const found = await json("layer", query);
      const numbers = Object.fromEntries(Object.entries(found.numbers).map(([name, value]) => [name, toNumber(value)]));
      const [range, rms] = [found.grad_norm_range && toNumbers(found.grad_norm_range), toNumber(found.grad_norm_rms)];
      return { ...found, numbers, grad_norm_range: range, grad_norm_rms: rms };
    },
  };
}
