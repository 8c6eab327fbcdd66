/** The names beside the heatmap, with brackets for groups. */

const FONT = 'px Roboto, system-ui, "Segoe UI", sans-serif';
const LEAST_DISTANCE = 12.5;
/** Width of one level of brackets. */
export const LEVEL = 16;
/** More levels would leave no room for the names. */
const MOST_LEVELS = 3;

/** Font of drawn text. */
export const font = (size = 11, weight = 400) => `${weight} ${size}${FONT}`;

/**
 * Shorten a path in the middle: parts without a number go first, of which the front ones tell least; then the middle
 * of its longest part. Numbers stay, for they tell layers apart.
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {number} width
 */
export function shorten(context, text, width) {
  const fits = (/** @type {string} */ found) => context.measureText(found).width <= width;
  let parts = text.split(".");
  let shown = text;
  while (!fits(shown)) {
    const place = parts.findIndex((part, i) => i < parts.length - 1 && part !== "…" && !/\d/.test(part));
    if (place < 0) return cut(shown, fits);
    parts = parts.with(place, "…").filter((part, i, all) => part !== "…" || all[i - 1] !== "…");
    shown = parts.join(".").replace(/\.?…\.?/g, "…");
  }
  return shown;
}

/**
 * Leave out letters around the middle of the longest run of them.
 * @param {string} text
 * @param {(found: string) => boolean} fits
 */
function cut(text, fits) {
  const runs = [...text.matchAll(/[^\d.…]+/g)].sort((a, b) => b[0].length - a[0].length);
  const { 0: longest = text, index = 0 } = runs[0] ?? {};
  const [before, after] = [text.slice(0, index), text.slice(index + longest.length)];
  for (let kept = longest.length - 1; kept > 1; kept -= 1) {
    const front = Math.floor(kept / 2);
    const found = `${before}${longest.slice(0, front)}…${longest.slice(front - kept)}${after}`;
    if (fits(found)) return found;
  }
  let start = 1;
  while (start < text.length && !fits(`…${text.slice(start)}`)) start += 1;
  return `…${text.slice(start)}`;
}

/** @typedef {{label: string, place: number, isFirst?: boolean, isChosen?: boolean}} Name */

/** Rows thinner than this go by the names of their groups. */
const THIN = 9;

/**
 * How many layers share a row stands in its tooltip.
 * @param {Row} row
 */
const nameOf = ({ path, label }) => path ?? label;

/** @param {Placed} place */
const middleOf = ({ top, height }) => top + height / 2;

/**
 * What can be named: rows, or groups where rows are too thin.
 * @param {PlacedRow[]} rows
 * @param {Group[]} groups
 * @returns {Name[]}
 */
function candidates(rows, groups) {
  const outer = rows[0].height < THIN ? brackets(groups, rows).filter(({ level }) => !level) : [];
  const nameFor = (/** @type {PlacedRow} */ row) => ({ label: nameOf(row), place: middleOf(row) });
  if (!outer.length) return rows.map((row) => ({ ...nameFor(row), isFirst: row.path !== null }));
  return outer.map((group) => ({ label: group.path, place: middleOf(group), isFirst: false }));
}

/**
 * The names that fit: the chosen row first, then folded groups and both ends, then as many as there is room for.
 * @param {PlacedRow[]} rows
 * @param {Group[]} groups
 * @param {number} chosen
 * @param {number} height
 * @returns {Name[]}
 */
function namesOf(rows, groups, chosen, height) {
  const all = candidates(rows, groups);
  const own = rows[chosen] ? [{ label: nameOf(rows[chosen]), place: middleOf(rows[chosen]), isChosen: true }] : [];
  const names = /** @type {Name[]} */ ([]);
  const ends = [...all.slice(0, 1), ...all.slice(-1)];
  for (const name of [...own, ...all.filter(({ isFirst }) => isFirst), ...ends, ...all]) {
    const place = Math.min(Math.max(name.place, 6), height - 6);
    if (!names.some((other) => Math.abs(other.place - place) < LEAST_DISTANCE)) names.push({ ...name, place });
  }
  return names;
}

/**
 * How many columns of brackets stand between the names and the heatmap.
 * @param {Bracket[]} found
 */
export const levelsOf = (found) => found.reduce((most, { level }) => Math.max(most, level + 1), 0);

/**
 * Where brackets stand: of groups with rows of their own, of what was opened, and of rows that can be opened.
 * @param {Group[]} groups
 * @param {PlacedRow[]} rows
 */
export function brackets(groups, rows) {
  const found = /** @type {Bracket[]} */ ([]);
  /** @type {(path: string, own: PlacedRow[], folded: boolean) => void} */
  const enter = (path, own, folded) => {
    const [{ top, first }, { top: end, height, last }] = [own[0], own[own.length - 1]];
    const bottom = end + height;
    const around = found.filter((other) => !other.folded && other.top <= top && other.top + other.height >= bottom);
    const level = Math.min(around.length, MOST_LEVELS);
    if (level === MOST_LEVELS && !folded) return;
    found.push({ path, first, last, level, folded, x: level * LEVEL, top, height: bottom - top });
  };
  for (const { path, first, last } of groups) {
    const own = rows.filter((row) => row.first >= first && row.last <= last);
    // where repetitions are together, the rows of one block lie apart
    const isTogether = own.length > 1 && own[own.length - 1].index - own[0].index === own.length - 1;
    if (isTogether) enter(path, own, false);
  }
  for (const path of new Set(rows.flatMap(({ inside }) => inside))) {
    enter(path, rows.filter(({ inside }) => inside.includes(path)), false);
  }
  for (const row of rows) if (row.path !== null) enter(row.path, [row], true);
  return found;
}

/**
 * Draw names and brackets into a box.
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {{rows: PlacedRow[], groups: Group[], chosen: number, alerted: Set<number>}} model The rows `chosen` and
 *   `alerted`.
 * @param {Palette} palette
 */
export function drawLabels(context, box, { rows, groups, chosen, alerted }, palette) {
  const found = brackets(groups, rows);
  const right = box.x + box.width - levelsOf(found) * LEVEL;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { label, place, isChosen } of namesOf(rows, groups, chosen, box.height)) {
    context.font = font(11, isChosen ? 600 : 400);
    context.fillStyle = isChosen ? palette.accent : palette.muted;
    context.fillText(shorten(context, label, right - box.x - 18), right - 14, box.y + place);
  }
  for (const row of alerted) if (rows[row]) drawMark(context, right - 7, box.y + middleOf(rows[row]), palette);
  for (const bracket of found) drawBracket(context, { ...box, x: right }, bracket, palette);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} y
 * @param {Palette} palette
 */
function drawMark(context, x, y, palette) {
  context.fillStyle = palette.alert;
  context.beginPath();
  context.arc(x, y, 2.5, 0, 2 * Math.PI);
  context.fill();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Box} box
 * @param {Bracket} bracket
 * @param {Palette} palette
 */
function drawBracket(context, box, { x, top, height, folded }, palette) {
  if (height < 6) return;
  const left = box.x + x + LEVEL / 2;
  context.strokeStyle = palette.line;
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(left + 4, box.y + top + 1.5);
  context.lineTo(left, box.y + top + 1.5);
  context.lineTo(left, box.y + top + height - 1.5);
  context.lineTo(left + 4, box.y + top + height - 1.5);
  if (!folded) context.stroke();
  if (height < 10) return;
  const middle = box.y + top + (folded ? height / 2 : Math.min(height / 2, 9));
  context.fillStyle = palette.surface;
  context.fillRect(left - 5, middle - 6, 10, 12);
  context.strokeStyle = palette.muted;
  context.beginPath();
  const [dx, dy] = folded ? [2, 3.5] : [3.5, 2];
  context.moveTo(left - dx, middle - dy);
  context.lineTo(folded ? left + dx : left, folded ? middle : middle + dy);
  context.lineTo(folded ? left - dx : left + dx, folded ? middle + dy : middle - dy);
  context.stroke();
}
