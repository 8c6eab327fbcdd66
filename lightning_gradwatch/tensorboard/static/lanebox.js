/** The lanes of the alerts, which the pointer can ask and click. */
import { drawing, prepare } from "./dom.js";
import { capital, formatStep, formatSteps } from "./format.js";
import { alertAt, drawLanes } from "./lanes.js";

/** @param {Pick<PageActions, "showAlert" | "tooltip">} actions */
export function createLaneBox(actions) {
  const element = drawing("lanes");
  /** @type {Model|null} */
  let model = null;
  let box = { x: 0, y: 0, width: 0 };

  element.addEventListener("pointermove", (event) => hover(event, at(event)));
  element.addEventListener("pointerleave", (event) => hover(event));
  element.addEventListener("click", (event) => {
    const alert = at(event);
    if (alert) actions.showAlert(alert);
  });

  function at(/** @type {MouseEvent} */ { offsetX, offsetY }) {
    return model ? alertAt(model.lanes, offsetX, offsetY, model.domain, box) : undefined;
  }

  /**
   * @param {MouseEvent} event
   * @param {Alert} [alert] The one under the pointer.
   */
  function hover(event, alert) {
    element.style.cursor = alert ? "pointer" : "";
    if (!alert) return actions.tooltip.hide();
    const { step, until_step: until, evidence } = alert;
    const when = until === null ? `since step ${formatStep(step)}, open` : formatSteps(step, until);
    const notes = evidence ? [when, capital(evidence)] : [when];
    return actions.tooltip.show(event, alert.layer || "the run as a whole", notes);
  }

  /**
   * @param {Model} next
   * @param {{x: number, y: number, width: number}} nextBox Where the lanes stand: below the heatmap.
   */
  function draw(next, nextBox) {
    [model, box] = [next, nextBox];
    drawLanes(prepare(element).context, box, next, next.palette);
  }
  return { element, draw };
}
