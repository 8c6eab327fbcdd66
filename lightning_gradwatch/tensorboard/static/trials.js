/** What was tried on a copy of the model, closed until somebody wants to see it. All of it is text from a log. */
import { h } from "./dom.js";

/** @param {string[]} cells */
const row = ([remedy, effect, ...rest]) =>
  h(
    "tr",
    { "data-effect": effect },
    h("th", { scope: "row", text: remedy }), ...[effect, ...rest].map((text) => h("td", { text })),
  );

/** @param {Trials["recipes"][number]} recipe */
const recipe = ([remedy, code]) =>
  h("details", {}, h("summary", { text: `Code: ${remedy}` }), h("pre", { tabindex: 0, text: code }));

/** @param {Alert} alert */
export function trialsOf({ tried }) {
  if (!tried) return null;
  const head = tried.header.map((text) => h("th", { scope: "col", text }));
  return h(
    "details",
    { class: "tried" },
    h("summary", { text: tried.title }),
    h("p", { class: "muted", text: tried.caption }),
    tried.headroom ? h("p", { class: "muted", text: tried.headroom }) : null,
    h(
      "div",
      { class: "rows", tabindex: 0, role: "region", "aria-label": tried.title },
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...tried.rows.map(row))),
    ),
    tried.order ? h("p", { class: "muted", text: tried.order }) : null,
    ...tried.recipes.map(recipe),
    tried.not_tried.length ? h("p", { class: "muted", text: `Not tried: ${tried.not_tried.join("; ")}.` }) : null,
  );
}
