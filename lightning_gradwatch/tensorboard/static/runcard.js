/** One run in the list: how it is in a shape, a colour, a word and a line, with a small heatmap. */
import { h, icon, prepare } from "./dom.js";
import { capital, formatAge, formatStep } from "./format.js";
import { drawHeatmap } from "./heatmap.js";
import { ends, titleOf } from "./names.js";
import { shapeOf } from "./status.js";
import { statusWord } from "./tables.js";

/**
 * @param {string} run
 * @param {Actions["chooseRun"]} choose
 */
export function createCard(run, choose) {
  const canvas = h("canvas", { class: "thumbnail", "aria-hidden": "true" });
  const mark = h("span", { class: "mark" });
  const word = h("span", { class: "word" });
  const headline = h("span");
  const state = h("span", { class: "state" });
  const when = h("span", { class: "when" });
  const [head, tail] = [h("span", { class: "head" }), h("span", { class: "tail" })];
  const element = h(
    "button",
    { class: "run", type: "button", "data-run": run, onclick: () => choose(run) },
    h("span", { class: "name", title: titleOf(run) }, mark, head, tail),
    canvas,
    h("span", { class: "headline" }, word, " ", headline),
    h("span", { class: "now" }, state, when),
  );
  let status = "";
  /** @type {string|null} */
  let drawn = null;

  /**
   * @param {RunRow} row
   * @param {string} name Its name as it is shown.
   * @param {boolean} isChosen
   */
  function update(row, name, isChosen) {
    if (row.status !== status) {
      status = row.status;
      element.dataset.status = status;
      word.textContent = `${capital(statusWord(row.status))}.`;
      mark.replaceChildren(icon(shapeOf(row.status)));
    }
    [head.textContent, tail.textContent] = ends(name);
    element.setAttribute("aria-pressed", String(isChosen));
    headline.textContent = headline.title = row.headline;
    const step = row.last_step === null ? "" : `step ${formatStep(row.last_step)}`;
    const age = row.wall_time ? formatAge(Date.now() / 1000 - row.wall_time) : "";
    element.dataset.state = row.state;
    state.textContent = row.state === "unknown" ? "" : row.state_text;
    when.textContent = [step, row.state === "live" ? "" : age].filter(Boolean).join(" · ");
  }

  /**
   * @param {Picture|null} model
   * @param {Palette} palette
   * @param {string} stamp That of the run from which the picture is.
   */
  function draw(model, palette, stamp) {
    drawn = stamp;
    const { context, width, height } = prepare(canvas);
    if (!model || !width) return;
    const rowHeight = height / model.frame.rows;
    const rows = Array.from({ length: model.frame.rows }, (_, i) => ({
      index: i, top: i * rowHeight, height: rowHeight,
    }));
    drawHeatmap(context, { x: 0, y: 0, width, height }, { ...model, rows }, palette, devicePixelRatio || 1);
  }
  const lacks = (/** @type {string} */ stamp) => drawn !== stamp;
  const outdate = () => (drawn = null);
  return { element, update, draw, lacks, outdate };
}
