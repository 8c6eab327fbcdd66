/** What stands to the right of the heatmap: the depth profile with its title, its legend and the names of its lines. */
import { css } from "./colours.js";
import { drawing, h, prepare } from "./dom.js";
import { formatSteps } from "./format.js";
import { drawLegend } from "./legend.js";
import { shortener } from "./names.js";
import { drawProfile, profileAt } from "./profile.js";
import { THIN } from "./spread.js";
import { labelOf, quantityOf } from "./tables.js";

/** Pixels that stay free on either side. */
const MARGIN = 10;

export function createSide() {
  const title = h("span", { class: "profile-title" });
  const profile = drawing("profile");
  const legend = drawing("legend");
  const overlays = h("div", { class: "overlays" });

  /**
   * @param {Model} model
   * @param {PlacedRow[]} rows
   * @param {number|null} hovered The column under the pointer, whose profile is shown instead of the chosen one's.
   */
  function draw(model, rows, hovered) {
    const { palette } = model;
    const { context, width, height } = prepare(profile);
    if (!width) return;
    const isChosen = hovered === null;
    const { step, lastStep, ...marks } = profileAt(model, hovered);
    const shown = {
      ...model, rows, ...marks, overlays: isChosen ? model.overlays : [], chosen: model.row,
    };
    drawProfile(context, { x: MARGIN, y: 0, width: width - 2 * MARGIN, height }, shown, palette);
    const what = model.compare ? "Difference" : "Depth profile";
    title.textContent = `${what} at ${formatSteps(step, lastStep)}`;
    overlays.replaceChildren(axisTitle(model), ...spreadNote(model, rows), ...overlayChips(model));
    const under = prepare(legend);
    drawLegend(under.context, { x: MARGIN, y: 4, width: under.width - 2 * MARGIN }, model, palette);
  }
  return { title, profile, legend, overlays, draw };
}

/**
 * What the axis of the profile, and the colours, measure.
 * @param {Model} model
 */
function axisTitle(model) {
  const { scale, compare } = model;
  const { unit, scale: kind } = quantityOf(model.quantity);
  const label = labelOf(model);
  const measure = unit ? `${label} in ${unit}` : label;
  const what = !compare ? measure : kind === "log" ? `${label}, ratio` : `${measure}, difference`;
  const isLogarithmic = scale.kind === "log" || (compare !== null && kind === "log");
  return h("span", { class: "axis-title", text: isLogarithmic ? `${what}, logarithmic` : what });
}

/**
 * What bars and bands are, where there are any.
 * @param {Model} model
 * @param {PlacedRow[]} rows
 */
function spreadNote({ compare }, rows) {
  if (rows.length && rows[0].height < THIN) {
    return [h("span", { class: "muted", text: "band: all layers here; line: their median" })];
  }
  if (compare || !rows.some(({ layers }) => layers.length > 1)) return [];
  return [h("span", { class: "muted", text: "line: a row's largest; bar: down to its smallest, with the median" })];
}

/**
 * Who is who in the profile; or, of a comparison, what the colours mean.
 * @param {Model} model
 */
function overlayChips({ run, compare, overlays, palette, stops }) {
  const nameOf = shortener([run.run, ...(compare ? [compare] : overlays.map(({ name }) => name))]);
  if (compare) {
    const [less, more] = [stops[1], stops[stops.length - 2]].map(css);
    return [
      chip(run.run, `6px solid ${more}`, `more in ${nameOf(run.run)}`),
      chip(compare, `6px solid ${less}`, `more in ${nameOf(compare)}`),
    ];
  }
  if (!overlays.length) return [];
  const style = (/** @type {number[]} */ dash) => (dash.length ? "dashed" : "solid");
  const isOff = (/** @type {Overlay} */ { cells }) => cells.some((cell) => cell < 0 || cell > 1);
  const others = overlays.map((overlay) => {
    const { name, colour, dash } = overlay;
    const short = nameOf(name);
    return chip(name, `2px ${style(dash)} ${colour}`, isOff(overlay) ? `${short}, leaves the axis` : short);
  });
  return [chip(run.run, `2px solid ${palette.ink}`, nameOf(run.run)), ...others];
}

/**
 * @param {string} name
 * @param {string} border
 * @param {string} text
 */
function chip(name, border, text = name) {
  const line = h("i", { class: "stroke" });
  line.style.borderTop = border;
  return h("span", { class: "chip", title: name }, line, h("span", { text }));
}
