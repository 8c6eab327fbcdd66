/** Which layers share which rows, in a few characters: see `spans.py`. */

/**
 * The places in `3+5-9+20-80:10`.
 * @param {string} text
 */
export function layersIn(text) {
  return text.split("+").flatMap((span) => {
    const [first, last = first, stride = 1] = span.split(/-|:/).map(Number);
    return Array.from({ length: Math.floor((last - first) / stride) + 1 }, (_, i) => first + i * stride);
  });
}

/**
 * Evenly spaced numbers from the start of a list: how many they are, and how far apart.
 * @param {number[]} numbers
 * @param {number} start
 */
function evenFrom(numbers, start) {
  const stride = numbers[start + 1] - numbers[start];
  let end = start + 1;
  while (end < numbers.length && stride > 0 && numbers[end] - numbers[end - 1] === stride) end += 1;
  return { end, stride };
}

/**
 * Numbers as spans, joined by `between`, in which `to` stands between the ends.
 * @param {number[]} numbers
 * @param {string} to
 * @param {string} between
 */
function spansOf(numbers, to, between) {
  const spans = [];
  for (let start = 0; start < numbers.length;) {
    const { end, stride } = evenFrom(numbers, start);
    const [first, last] = [numbers[start], numbers[end - 1]];
    spans.push(first === last ? `${first}` : `${first}${to}${last}${stride > 1 ? `:${stride}` : ""}`);
    start = end;
  }
  return spans.join(between);
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
    if (layers.length > 1 && alone.length) parts.push(spansOf(alone, "..", ","));
    if (layers.length > 1) parts.push(spansOf(layers, "-", "+"));
    alone = layers.length > 1 ? [] : [...alone, layers[0]];
  }
  if (alone.length) parts.push(spansOf(alone, "..", ","));
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
