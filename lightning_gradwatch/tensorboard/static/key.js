/** The legend of cells that are no number. */
import { h } from "./dom.js";
import { cellWords } from "./tables.js";

/** The patterns of cells that are no number. */
export function createKey() {
  const element = h("div", { class: "key", "aria-label": "Cells without a number", role: "group" });
  function update() {
    if (!element.children.length) element.append(...Object.entries(cellWords()).map(entry));
  }
  return { element, update };
}

/** @param {[name: string, text: string]} cell */
const entry = ([name, text]) =>
  h("span", { class: "key-entry" }, h("i", { class: `swatch ${name}` }), h("span", { text }));
