/** The legend of cells that are no number. */
import { h } from "./dom.js";

/** The patterns of cells that are no number. */
export function createKey() {
  return h(
    "div",
    { class: "key", "aria-label": "Cells without a number", role: "group" },
    entry("nonfinite", "NaN or Inf"), entry("zero", "exactly zero"), entry("missing", "no data"),
  );
}

const entry = (name, text) =>
  h("span", { class: "key-entry" }, h("i", { class: `swatch ${name}` }), h("span", { text }));
