/** Keyboard and mouse, in a dialog. */
import { h } from "./dom.js";

const KEYS = [
  ["↑ ↓", "layer above, layer below"],
  ["← →", "sample before, sample after"],
  ["Home, End", "first sample, newest sample (and stay there)"],
  ["+ −", "zoom in and out around the chosen step"],
  ["Escape", "all steps"],
  ["q", "next quantity (Shift: the one before)"],
  ["f", "fold or unfold the group of the layer"],
  ["s", "the sickest layer, then the next one"],
  ["/", "find a layer"],
  ["?", "this help"],
  ["drag", "zoom to these steps"],
  ["Ctrl + wheel", "zoom around the pointer"],
  ["double click", "all steps"],
];
const INTRODUCTION =
  "The keys work while the heatmap has the focus. Rows are layers, the one next to the input on top; the gradient " +
  "flows from the bottom to the top.";

export function createHelp() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-labelledby": "gw-help" },
    h("h2", { id: "gw-help", text: "Keyboard and mouse" }),
    h("p", { class: "muted", text: INTRODUCTION }),
    h("dl", {}, ...KEYS.map(([key, text]) => h("div", {}, h("dt", { text: key }), h("dd", { text })))),
    h("form", { method: "dialog" }, h("button", { class: "button", text: "Close" })),
  );
  const open = () => dialog.open || dialog.showModal();
  return { element: dialog, open };
}
