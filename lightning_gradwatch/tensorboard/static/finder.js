/** Finds a layer among many by words of its name. */
import { h } from "./dom.js";
import { findable } from "./moves.js";

/** Layers up to which all of them are seen at a glance. */
const FEW = 8;
/** Milliseconds that somebody pauses in typing before the view goes there. */
const PAUSE = 150;

/** @param {Pick<Actions, "find">} actions */
export function createFinder({ find }) {
  const input = h("input", {
    type: "search", class: "find layer-find", placeholder: "Find a layer", "aria-label": "Find a layer",
    title: "Words that stand in its name; Enter goes to the next one, Shift + Enter to the one before",
  });
  const note = h("span", { class: "muted", role: "status" });
  const element = h("span", { class: "field" }, input, note);
  let timer = 0;
  /** @type {Model|null} */
  let model = null;
  /** What was opened before the search: what the search opens closes again with the next find. */
  let before = /** @type {string[]} */ ([]);

  input.addEventListener("focus", () => {
    before = [...new Set(model?.rows.flatMap(({ inside }) => inside))];
  });
  input.addEventListener("input", () => {
    clearTimeout(timer);
    tell();
    timer = setTimeout(() => go(0), PAUSE);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(timer);
    go(event.shiftKey ? -1 : 1);
  });

  function go(/** @type {number} */ by) {
    if (input.value.trim()) find(input.value, by, before);
  }

  /** Which of the layers that fit is chosen. */
  function tell() {
    const found = input.value.trim() && model ? findable(model, input.value) : null;
    const place = model && found ? found.indexOf(model.layers.indexOf(model.layer)) + 1 : 0;
    note.textContent = !found ? "" : !found.length ? "no such layer" : `${place || "–"} of ${found.length}`;
  }

  function update(/** @type {Model} */ next) {
    model = next;
    element.hidden = next.layers.length <= FEW;
    tell();
  }
  return { element, update, focus: () => element.hidden || input.focus() };
}
