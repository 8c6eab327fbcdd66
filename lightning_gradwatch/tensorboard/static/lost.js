/** Where on its way back the gradient is lost: a waterfall from the loss to the layer, and what its colours mean. */
import { h } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720;
const HEIGHT = 72;

/**
 * @param {string} name
 * @param {Record<string, string|number>} attributes
 * @param {string} [title]
 */
function drawn(name, attributes, title) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (title) {
    const words = document.createElementNS(SVG, "title");
    words.textContent = title;
    element.append(words);
  }
  return element;
}

/** @param {number} decades */
const told = (decades) => (decades < 0 ? `${(-decades).toFixed(1)} gained` : `${decades.toFixed(1)} lost`);

/**
 * The bars: each hangs where the one before has ended, and what gains leads up again.
 * @param {Lost} where
 * @returns {{place: number, group: string, from: number, to: number, title: string}[]}
 */
export function barsOf({ parts, stages }) {
  const bars = [];
  let level = 0;
  for (const [place, { layer, lost }] of stages.entries()) {
    for (const { group } of parts) {
      const decades = lost[group] ?? 0;
      if (!decades) continue;
      const title = `behind ${layer}: ${group}, ${told(decades)}`;
      bars.push({ place, group, from: level, to: level + decades, title });
      level += decades;
    }
  }
  return bars;
}

/** @param {Lost} where */
function waterfall(where) {
  const bars = barsOf(where);
  const ends = bars.flatMap(({ from, to }) => [from, to]);
  const [top, bottom] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const y = (/** @type {number} */ decades) => ((decades - top) / (bottom - top || 1)) * HEIGHT;
  const step = WIDTH / Math.max(where.stages.length, 1);
  const classes = new Map(where.parts.map(({ group }, place) => [group, `part-${place + 1}`]));
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const { place, group, from, to, title } of bars) {
    const height = Math.max(Math.abs(y(to) - y(from)), 0.5);
    const box = { x: place * step, y: Math.min(y(from), y(to)), width: Math.max(step - 1, 1), height };
    svg.append(drawn("rect", { ...box, class: classes.get(group) ?? "" }, title));
  }
  return svg;
}

/** @param {Alert} alert */
export function lostOf({ where }) {
  if (!where) return null;
  const lines = where.parts.map(({ label, lost }, place) =>
    h(
      "li",
      {},
      h("span", { class: `swatch part-${place + 1}`, "aria-hidden": "true" }),
      `${label}: ${told(lost)}`,
    ),
  );
  return h(
    "figure",
    { class: "lost" },
    h("figcaption", { text: where.title }),
    h("div", { class: "waterfall" }, waterfall(where)),
    h("p", { class: "ends" }, h("span", { text: "loss" }), h("span", { text: "input" })),
    h("ul", {}, ...lines),
  );
}
