/** Two lines on how to read heatmap and profile, until somebody has used them. */
import { h } from "./dom.js";

const KEY = "gradwatch.hint";
const LINES = [
  "Heatmap: layers from the input (top) to the loss, time to the right. Much the same colour is healthy, fading " +
    "upwards is a lost gradient, red is NaN.",
  "Profile: one step. Upright is healthy, a slope to the left is a lost gradient. Click for another, drag to zoom.",
];

/** Whether it has been used in this browser; where nothing can be remembered, in this page. */
function isKnown() {
  try {
    return localStorage.getItem(KEY) !== null;
  } catch {
    return false;
  }
}

export function createHint() {
  const close = h("button", { type: "button", class: "link", text: "Got it", onclick: used });
  const lines = h("p", {}, LINES[0], h("br"), LINES[1]);
  const element = h("aside", { class: "hint", "aria-label": "How to read this", hidden: isKnown() }, lines, close);

  /** Heatmap or profile are being used: it is not needed any more. */
  function used() {
    if (element.hidden) return;
    element.hidden = true;
    try {
      localStorage.setItem(KEY, "used");
    } catch {
      // it comes again with the next page
    }
  }
  return { element, used };
}
