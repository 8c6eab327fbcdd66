/** What a person sees who has no data here yet. */
import { h } from "./dom.js";

const EXAMPLE = `from lightning_gradwatch import GradWatch

trainer = Trainer(callbacks=[GradWatch()])
trainer.fit(model)`;
const CURE =
  "Add the callback to your Trainer, and this tab shows where the gradient dies, layer by layer and step by step:";
const FURTHER =
  "New data appears by itself within a few seconds. A run that was trained without GradWatch cannot be watched " +
  "afterwards; being unwatched says nothing about its health.";

/** @param {boolean} hasOthers Whether other runs have data. */
export function emptyState(hasOthers) {
  return h(
    "section",
    { class: "card empty" },
    h("h2", { text: hasOthers ? "GradWatch does not watch this run" : "No run here is watched yet" }),
    h("p", { text: CURE }),
    h("pre", { tabindex: "0", "aria-label": "Example" }, h("code", { text: EXAMPLE })),
    h("p", { class: "muted", text: FURTHER }),
  );
}

/**
 * A failure as a sentence, with a way to try again.
 * @param {() => void} retry
 */
export function createTrouble(retry) {
  const text = h("span");
  const again = h("button", { type: "button", class: "button", text: "Try again", onclick: retry });
  const element = h("div", { class: "trouble", role: "alert", hidden: true }, text, again);
  function show(/** @type {string} */ sentence) {
    text.textContent = sentence;
    element.hidden = false;
  }
  return { element, show, hide: () => (element.hidden = true) };
}
