/** Where NaN or infinity was born: the stage of the step, the line of code and the samples. All of it stays text. */
import { h } from "./dom.js";

/** @param {Born} born */
const way = ({ stages, at }) =>
  h(
    "ol",
    {},
    ...stages.map((text, place) => h("li", { "aria-current": place === at ? "step" : null, text })),
  );

/** @param {Alert} alert */
export function bornOf({ born }) {
  if (!born) return null;
  const place = [born.file, born.line ? `line ${born.line}` : "", born.module, born.samples].filter(Boolean);
  return h(
    "figure",
    { class: "born" },
    h("figcaption", { text: born.title }),
    way(born),
    place.length ? h("p", { text: place.join(" · ") }) : null,
    born.code ? h("pre", { tabindex: 0, "data-line": born.line || "" }, h("code", { text: born.code })) : null,
  );
}
