/** What to show: optimizer, quantity, comparison; and what to do with it. */
import { h, setOptions } from "./dom.js";
import { createFinder } from "./finder.js";
import { sickOf } from "./moves.js";
import { normOf, quantityOf } from "./tables.js";

/** @param {Pick<PageActions, "set" | "foldAll" | "reset" | "png" | "csv" | "help" | "find" | "toSickest">} actions */
export function createToolbar(actions) {
  const optimizer = createSelect("Optimizer", (name) => actions.set({ optimizer: name }));
  const quantity = createSelect("Quantity", (name) => actions.set({ quantity: name }));
  const norm = createSelect("Norm", (name) => actions.set({ norm: name }));
  const compare = createSelect("Compare with", (run) => actions.set({ compare: run }));
  const optimizerField = field("Optimizer", optimizer);
  /** @type {HTMLElement} */
  const matrices = button(
    "Matrices only", () => actions.set({ hide: matrices.ariaPressed === "true" ? null : "vectors" }),
    "Hide norm layers and biases, unless an alert is about them",
  );
  /** @type {HTMLElement} */
  const fold = button("Fold groups", () => actions.foldAll(fold.textContent === "Fold groups"));
  const finder = createFinder(actions);
  const sickest = button("Sickest layer", actions.toSickest, "The layer of the alert that matters most, then the next");
  const reset = button("All steps", actions.reset, "Escape, or double click");
  const live = h("span", { class: "live" });
  const help = h("button", {
    type: "button", class: "button square", text: "?", "aria-label": "Keyboard and mouse", onclick: actions.help,
  });
  const element = h(
    "div",
    { class: "toolbar", role: "group", "aria-label": "View" },
    optimizerField, field("Show", quantity), norm, matrices, field("Compare with", compare),
    finder.element, sickest, fold, reset,
    h(
      "span", { class: "aside" },
      live, button("PNG", actions.png, "Save the picture"), button("CSV", actions.csv, "Save the numbers"), help,
    ),
  );

  /** @param {Model} model */
  function update(model) {
    setOptions(optimizer, model.optimizers.map((name) => [name, name || "the only one"]), model.optimizer);
    optimizerField.hidden = model.optimizers.length < 2;
    setOptions(quantity, model.quantities.map((name) => [name, quantityOf(name).label]), model.quantity);
    quantity.title = quantityOf(model.quantity).hint;
    norm.hidden = model.norms.length < 2;
    setOptions(norm, model.norms.map((name) => [name, normOf(name)?.label ?? name]), model.norm);
    norm.title = normOf(model.norm)?.hint ?? "";
    matrices.hidden = !model.version.num_vectors;
    matrices.ariaPressed = String(model.isHiding);
    const none = model.comparable.length ? "nothing" : "no run with these layers";
    setOptions(compare, [["", none], ...model.comparable.map((run) => [run, run])], model.compare ?? "");
    compare.disabled = !model.comparable.length;
    fold.hidden = !model.groups.length;
    fold.textContent = model.isFolded ? "Unfold groups" : "Fold groups";
    reset.hidden = !model.isZoomed;
    finder.update(model);
    sickest.hidden = !sickOf(model).length;
  }
  /**
   * @param {string} text
   * @param {RunRow["state"]} state
   */
  function setLive(text, state) {
    live.textContent = text;
    live.dataset.state = state;
  }
  return { element, update, setLive, search: finder.focus };
}

/**
 * @param {string} label
 * @param {(value: string|null) => void} choose
 */
function createSelect(label, choose) {
  const select = h("select", { "aria-label": label, onchange: () => choose(select.value || null) });
  return select;
}

/**
 * @param {string} label
 * @param {HTMLElement} input
 */
const field = (label, input) => h("label", { class: "field" }, h("span", { text: label }), input);

/**
 * @param {string} text
 * @param {() => void} onclick
 * @param {string} [title]
 */
const button = (text, onclick, title) => h("button", { type: "button", class: "button", text, onclick, title });
