/** Layers grouped by module path, as rows that can be folded. */

/** A group bracket is drawn for at most this many levels. */
const MAX_LEVELS = 3;

/**
 * Groups of neighbours that share a path, outermost first.
 * @param {string[]} layers Names in running order.
 * @returns {Group[]}
 */
export function groupsOf(layers) {
  const paths = layers.map((layer) => layer.split("."));
  const groups = /** @type {Group[]} */ ([]);
  gather(paths, 0, paths.length - 1, 0, 0, groups);
  return groups;
}

/**
 * @param {string[][]} paths
 * @param {number} first
 * @param {number} last
 * @param {number} depth
 * @param {number} level
 * @param {Group[]} groups
 */
function gather(paths, first, last, depth, level, groups) {
  let start = first;
  for (let i = first + 1; i <= last + 1; i += 1) {
    if (i <= last && paths[i][depth] !== undefined && paths[i][depth] === paths[start][depth]) continue;
    const end = i - 1;
    if (end > start) enter(paths, start, end, depth, level, groups, start === first && end === last);
    start = i;
  }
}

/**
 * A group that holds all there is says nothing and is passed through.
 * @param {string[][]} paths
 * @param {number} first
 * @param {number} last
 * @param {number} depth
 * @param {number} level
 * @param {Group[]} groups
 * @param {boolean} isWhole
 */
function enter(paths, first, last, depth, level, groups, isWhole) {
  let deepest = depth;
  const own = paths.slice(first, last + 1);
  const shares = (/** @type {number} */ at) => {
    const name = paths[first][at];
    return name !== undefined && own.every((path) => path[at] === name && path.length > at + 1);
  };
  while (shares(deepest + 1)) deepest += 1;
  if (!isWhole) groups.push({ path: paths[first].slice(0, deepest + 1).join("."), first, last, level });
  const next = level + (isWhole ? 0 : 1);
  if (next < MAX_LEVELS) gather(paths, first, last, deepest + 1, next, groups);
}

/**
 * The rows of the heatmap: a layer, or a folded group of layers.
 * @param {string[]} layers
 * @param {Group[]} groups
 * @param {Set<string>} folded Paths of folded groups.
 */
export function rowsOf(layers, groups, folded) {
  const rows = /** @type {Row[]} */ ([]);
  for (let i = 0; i < layers.length; i += 1) {
    const group = groups.find(({ path, first }) => first === i && folded.has(path));
    const last = group ? group.last : i;
    const label = group ? `${group.path} (${last - i + 1} layers)` : layers[i];
    rows.push({ first: i, last, label, path: group?.path ?? null });
    i = last;
  }
  return rows;
}

/**
 * The row that shows a layer.
 * @param {Stretch[]} rows
 * @param {number} layer
 */
export const rowOf = (rows, layer) => rows.findIndex(({ first, last }) => layer >= first && layer <= last);

/**
 * The laid out row at a height.
 * @template {Placed} Found
 * @param {Found[]} rows
 * @param {number} y
 */
export const rowAt = (rows, y) => rows.find(({ top, height }) => y >= top && y < top + height);

/**
 * Heights: folded rows stay readable, and layers share the rest.
 * @param {Row[]} rows
 * @param {number} height
 * @param {number} least Of a folded row.
 * @returns {PlacedRow[]}
 */
export function layOut(rows, height, least = 15) {
  const usual = height / rows.length;
  const folded = rows.filter((row) => row.path).length;
  const tall = Math.max(usual, Math.min(least, height / Math.max(folded, 1)));
  const plain = rows.length > folded ? (height - folded * tall) / (rows.length - folded) : 0;
  let top = 0;
  return rows.map((row) => {
    const own = row.path ? tall : plain;
    top += own;
    return { ...row, top: top - own, height: own };
  });
}
