/** Which layers share which rows, in a few characters: see `spans.py`. */

/**
 * The places in `3+5-9+20-80:10+91-99:4x2`.
 * @param {string} text
 */
export function layersIn(text) {
  return text.split("+").flatMap((span) => {
    const [first, last = first, stride = 1, width = 1] = span.split(/[-:x]/).map(Number);
    const count = (Math.floor((last - first) / stride) + 1) * width;
    return Array.from({ length: count }, (_, i) => first + Math.floor(i / width) * stride + (i % width));
  });
}

/**
 * Neighbours together, as their first and their number.
 * @param {number[]} layers Rising.
 */
function runsOf(layers) {
  const runs = /** @type {{first: number, width: number}[]} */ ([]);
  for (const layer of layers) {
    const run = runs.at(-1);
    if (run && layer === run.first + run.width) run.width += 1;
    else runs.push({ first: layer, width: 1 });
  }
  return runs;
}

/**
 * Rising places in a few characters.
 * @param {number[]} layers
 */
function spansOf(layers) {
  const runs = runsOf(layers);
  const spans = [];
  for (let start = 0; start < runs.length;) {
    const { first, width } = runs[start];
    const stride = (runs[start + 1]?.first ?? first) - first;
    let end = start + 1;
    while (runs[end]?.width === width && runs[end].first === first + stride * (end - start)) end += 1;
    const last = first + stride * (end - start - 1);
    if (last > first) spans.push(`${first}-${last}:${stride}${width > 1 ? `x${width}` : ""}`);
    else spans.push(width > 1 ? `${first}-${first + width - 1}` : `${first}`);
    start = end;
  }
  return spans.join("+");
}

/**
 * Single layers, each with a row of its own, in any order.
 * @param {number[]} layers
 */
function aloneText(layers) {
  const parts = [];
  for (let start = 0; start < layers.length;) {
    const stride = layers[start + 1] - layers[start];
    let end = start + 1;
    while (stride > 0 && layers[end] - layers[end - 1] === stride) end += 1;
    const [first, last] = [layers[start], layers[end - 1]];
    parts.push(first === last ? `${first}` : `${first}..${last}${stride > 1 ? `:${stride}` : ""}`);
    start = end;
  }
  return parts.join(",");
}

/**
 * Rows as a text for the server: `0,1-4,5..8` are a row of one layer, one of four, and four of one; undefined where
 * every layer has a row of its own, in order.
 * @param {Row[]} rows
 * @returns {string|undefined}
 */
export function rowsText(rows) {
  if (rows.every(({ layers }, i) => layers.length === 1 && layers[0] === i)) return undefined;
  const parts = [];
  let alone = /** @type {number[]} */ ([]);
  for (const { layers } of rows) {
    if (layers.length > 1 && alone.length) parts.push(aloneText(alone));
    if (layers.length > 1) parts.push(spansOf(layers));
    alone = layers.length > 1 ? [] : [...alone, layers[0]];
  }
  if (alone.length) parts.push(aloneText(alone));
  return parts.join(",");
}

/**
 * The text as lists of layers, one for each row.
 * @param {string} text
 */
export function rowsIn(text) {
  return text.split(",").flatMap((row) => {
    if (!row.includes("..")) return [layersIn(row)];
    return layersIn(row.replace("..", "-")).map((layer) => [layer]);
  });
}
