/** What stands beside the heatmap: the names of the rows, and a button for every group. */
import { drawing, h, prepare } from "./dom.js";
import { LEVEL, brackets, drawLabels, levelsOf } from "./labels.js";
import { rowAt, rowOf } from "./tree.js";

/** Brackets lower than this have no room for a button. */
const LEAST_HEIGHT = 12;

/** @param {Pick<PageActions, "choose" | "fold" | "tooltip">} actions */
export function createGutter(actions) {
  const labels = drawing("labels");
  const folds = h("div", { class: "folds" });
  const element = h("div", { class: "gutter" }, labels, folds);
  /** @type {string[]} */
  let layers = [];
  /** @type {PlacedRow[]} */
  let rows = [];

  element.addEventListener("pointermove", (event) => {
    const row = rowAt(rows, event.clientY - element.getBoundingClientRect().top);
    if (row) actions.tooltip.show(event, row.label, membersOf(row));
    else actions.tooltip.hide();
  });
  element.addEventListener("pointerleave", () => actions.tooltip.hide());
  element.addEventListener("click", ({ offsetY, target }) => {
    const row = target instanceof Element && target.closest("button") ? null : rowAt(rows, offsetY);
    if (row) actions.choose({ layer: layers[row.layers[0]] });
  });

  /**
   * @param {Model} model
   * @param {PlacedRow[]} laidOut
   */
  function draw(model, laidOut) {
    [layers, rows] = [model.layers, laidOut];
    const { context, width, height } = prepare(labels);
    const { groups, alerts, palette } = model;
    const ailing = alerts.filter(({ until_step: until, layer }) => until === null && layer);
    const alerted = new Set(ailing.map(({ layer }) => rowOf(rows, layers.indexOf(layer))));
    drawLabels(context, { x: 0, y: 0, width, height }, { rows, groups, chosen: model.row, alerted }, palette);
    drawFolds(groups);
  }

  /**
   * Buttons over the brackets, made anew only if these have changed; the focus stays with its group.
   * @param {Group[]} groups
   */
  function drawFolds(groups) {
    const all = brackets(groups, rows);
    const wanted = all.filter(({ height }) => height >= LEAST_HEIGHT);
    const left = element.clientWidth - levelsOf(all) * LEVEL;
    const signature = JSON.stringify([left, wanted]);
    if (folds.dataset.signature === signature) return;
    const focused = document.activeElement?.getAttribute("data-path");
    folds.dataset.signature = signature;
    folds.replaceChildren(...wanted.map((bracket) => foldButton(bracket, left, actions.fold)));
    const again = focused && folds.querySelector(`[data-path="${CSS.escape(focused)}"]`);
    if (again instanceof HTMLElement) again.focus();
  }

  /**
   * The first and the last of the layers that share a row.
   * @param {Row} row
   */
  function membersOf({ layers: own }) {
    if (own.length < 2) return [];
    return own.length < 4 ? own.map((layer) => layers[layer]) : [layers[own[0]], "…", layers[own[own.length - 1]]];
  }

  return { element, draw };
}

/**
 * @param {Bracket} bracket
 * @param {number} left Where the brackets begin.
 * @param {Actions["fold"]} fold
 */
function foldButton({ path, x, top, height, folded }, left, fold) {
  const button = h("button", {
    type: "button", class: "fold", "aria-expanded": String(!folded), "data-path": path,
    "aria-label": `${folded ? "Unfold" : "Fold"} ${path}`, title: path, onclick: () => fold(path),
  });
  button.style.left = `${left + x}px`;
  button.style.top = `${top + (folded ? height / 2 : Math.min(height / 2, 9)) - 8}px`;
  button.style.width = `${LEVEL}px`;
  return button;
}
