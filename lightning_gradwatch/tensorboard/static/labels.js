/** The names beside the heatmap, with brackets for groups. */

const FONT = 'px Roboto, system-ui, "Segoe UI", sans-serif';
const LEAST_DISTANCE = 12.5;
/** Width of one level of brackets. */
export const LEVEL = 16;

/** Font of drawn text. */
export const font = (size = 11, weight = 400) => `${weight} ${size}${FONT}`;

/**
 * Shorten at the front, for the end of a path says most.
 * @param {CanvasRenderingContext2D} context
 * @param {string} text
 * @param {number} width
 */
export function shorten(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let start = 1;
  while (start < text.length && context.measureText(`…${text.slice(start)}`).width > width) start += 1;
  return `…${text.slice(start)}`;
}

/** @typedef {{label: string, place: number, isFirst?: boolean, isChosen?: boolean}} Name */

/** Rows thinner than this go by the names of their groups. */
const THIN = 9;

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
  if (!outer.length) return rows.map((row) => ({ label: row.label, place: middleOf(row), isFirst: Boolean(row.path) }));
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
  const own = rows[chosen] ? [{ label: rows[chosen].label, place: middleOf(rows[chosen]), isChosen: true }] : [];
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
 * @param {Group[]} groups
 */
export const levelsOf = (groups) => groups.reduce((most, { level }) => Math.max(most, level + 1), 0);

/**
 * Where the brackets of open groups stand: `top`, `height`, `x`, `path`, for those with rows of their own.
 * @param {Group[]} groups
 * @param {PlacedRow[]} rows
 */
export function brackets(groups, rows) {
  const found = /** @type {Bracket[]} */ ([]);
  for (const group of groups) {
    const own = rows.filter((row) => row.first >= group.first && row.last <= group.last);
    if (!own.length) continue;
    const folded = own.length === 1 && own[0].path === group.path;
    if (own.length === 1 && !folded) continue;
    const [{ top }, last] = [own[0], own[own.length - 1]];
    found.push({ ...group, folded, x: group.level * LEVEL, top, height: last.top + last.height - top });
  }
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
  const right = box.x + box.width - levelsOf(groups) * LEVEL;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { label, place, isChosen } of namesOf(rows, groups, chosen, box.height)) {
    context.font = font(11, isChosen ? 600 : 400);
    context.fillStyle = isChosen ? palette.accent : palette.muted;
    context.fillText(shorten(context, label, right - box.x - 18), right - 14, box.y + place);
  }
  for (const row of alerted) if (rows[row]) drawMark(context, right - 7, box.y + middleOf(rows[row]), palette);
  for (const bracket of brackets(groups, rows)) drawBracket(context, { ...box, x: right }, bracket, palette);
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
