/** What stands to the right of the heatmap: the depth profile with its title, its legend and the names of its lines. */
import { css } from "./colours.js";
import { drawing, h, prepare } from "./dom.js";
import { formatSteps } from "./format.js";
import { drawLegend, drawProfile, profileAt } from "./profile.js";

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
    const { cells, step, lastStep } = profileAt(model, hovered);
    const shown = {
      ...model, rows, cells, overlays: isChosen ? model.overlays : [], layers: model.layers.length, chosen: model.row,
    };
    drawProfile(context, { x: MARGIN, y: 0, width: width - 2 * MARGIN, height }, shown, palette);
    const what = model.compare ? "Difference" : "Depth profile";
    title.textContent = `${what} at ${formatSteps(step, lastStep)}`;
    overlays.replaceChildren(...overlayChips(model));
    const under = prepare(legend);
    drawLegend(under.context, { x: MARGIN, y: 4, width: under.width - 2 * MARGIN }, model, palette);
  }
  return { title, profile, legend, overlays, draw };
}

/**
 * Who is who in the profile; or, of a comparison, what the colours mean.
 * @param {Model} model
 */
function overlayChips({ run, compare, overlays, palette, stops }) {
  if (compare) {
    const [less, more] = [stops[1], stops[stops.length - 2]].map(css);
    return [
      chip(run.run, `6px solid ${more}`, `more in ${run.run}`),
      chip(compare, `6px solid ${less}`, `more in ${compare}`),
    ];
  }
  if (!overlays.length) return [];
  const style = (/** @type {number[]} */ dash) => (dash.length ? "dashed" : "solid");
  const others = overlays.map(({ name, colour, dash }) => chip(name, `2px ${style(dash)} ${colour}`));
  return [chip(run.run, `2px solid ${palette.ink}`), ...others];
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
