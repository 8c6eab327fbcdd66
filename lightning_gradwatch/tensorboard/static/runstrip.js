/** The strip of runs: one card each, the sickest first, with a thumbnail of its heatmap. */
import { h, icon, prepare } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { shapeOf } from "./status.js";
import { statusWord } from "./tables.js";

/** @param {Actions["chooseRun"]} choose Called with the name of the run. */
export function createRunStrip(choose) {
  const list = h("div", { class: "strip", role: "group", "aria-label": "Runs, the sickest first" });
  const cards = /** @type {Map<string, ReturnType<typeof createCard>>} */ (new Map());

  function cardOf(/** @type {string} */ run) {
    const card = cards.get(run) ?? createCard(run, choose);
    cards.set(run, card);
    return card;
  }

  /**
   * @param {RunRow[]} runs
   * @param {string|null} chosen
   */
  function update(runs, chosen) {
    const wanted = runs.map((row) => cardOf(row.run));
    for (const [run, card] of cards) if (!wanted.includes(card)) cards.delete(run);
    const elements = wanted.map(({ element }) => element);
    if (elements.some((element, i) => list.children[i] !== element) || list.children.length !== elements.length) {
      list.replaceChildren(...elements);
    }
    runs.forEach((row, i) => wanted[i].update(row, row.run === chosen));
  }

  /**
   * @param {string} run
   * @param {Picture|null} model
   * @param {Palette} palette
   */
  const drawThumbnail = (run, model, palette) => cards.get(run)?.draw(model, palette);
  return { element: list, update, drawThumbnail };
}

/**
 * @param {string} run
 * @param {Actions["chooseRun"]} choose
 */
function createCard(run, choose) {
  const canvas = h("canvas", { class: "thumbnail", "aria-hidden": "true" });
  const mark = h("span", { class: "mark" });
  const word = h("span", { class: "word" });
  const headline = h("span");
  const element = h(
    "button",
    { class: "run", type: "button", onclick: () => choose(run) },
    h("span", { class: "name" }, mark, h("span", { text: run === "." ? "(this run)" : run, title: run })),
    canvas,
    h("span", { class: "headline" }, word, " ", headline),
  );
  let status = "";
  let wasChosen = false;
  /**
   * @param {RunRow} row
   * @param {boolean} isChosen
   */
  function update(row, isChosen) {
    if (isChosen && !wasChosen) element.scrollIntoView({ block: "nearest", inline: "nearest" });
    wasChosen = isChosen;
    if (row.status !== status) {
      status = row.status;
      element.dataset.status = status;
      const text = statusWord(row.status);
      word.textContent = `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
      mark.replaceChildren(icon(shapeOf(row.status)));
    }
    element.setAttribute("aria-pressed", String(isChosen));
    headline.textContent = headline.title = row.headline;
  }

  /**
   * @param {Picture|null} model
   * @param {Palette} palette
   */
  function draw(model, palette) {
    const { context, width, height } = prepare(canvas);
    if (!model || !width) return;
    const rowHeight = height / model.frame.rows;
    const rows = Array.from({ length: model.frame.rows }, (_, i) => ({
      first: i, last: i, top: i * rowHeight, height: rowHeight,
    }));
    drawHeatmap(context, { x: 0, y: 0, width, height }, { ...model, rows }, palette, devicePixelRatio || 1);
  }
  return { element, update, draw };
}
