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

const NO_LAYERS = [
  "A run that has just begun has none until its first steps are written: they appear here by themselves.",
  "Otherwise the record of the run is missing, and only its alerts are here. Leave GradWatch(record=...) at its " +
    "default, and point tensorboard --logdir, or gradwatch report, at the directory with its event file.",
];

/**
 * @param {boolean} isWatched Whether this run has alerts, or might have.
 * @param {boolean} hasOthers Whether other runs have data.
 */
export function emptyState(isWatched, hasOthers) {
  if (isWatched) {
    const lines = NO_LAYERS.map((text) => h("p", { text }));
    return h("section", { class: "card empty" }, h("h2", { text: "No layers of this run yet" }), ...lines);
  }
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
