/** The lanes of the alerts, which the pointer can ask and click. */
import { drawing, prepare } from "./dom.js";
import { formatStep, formatSteps } from "./format.js";
import { alertAt, drawLanes } from "./lanes.js";

/** @param {Object} actions `showAlert(alert)` and `tooltip`. */
export function createLaneBox(actions) {
  const element = drawing("lanes");
  let model = null;
  let box = null;

  for (const type of ["pointermove", "pointerleave"]) element.addEventListener(type, hover);
  element.addEventListener("click", (event) => {
    const alert = at(event);
    if (alert) actions.showAlert(alert);
  });

  const at = ({ offsetX, offsetY }) => model && alertAt(model.lanes, offsetX, offsetY, model.domain, box);

  function hover(event) {
    const alert = event.type === "pointerleave" ? null : at(event);
    element.style.cursor = alert ? "pointer" : "";
    if (!alert) return actions.tooltip.hide();
    const { step, until_step: until } = alert;
    const when = until === null ? `since step ${formatStep(step)}, open` : formatSteps(step, until);
    return actions.tooltip.show(event, alert.layer || "the run as a whole", [when, alert.evidence].filter(Boolean));
  }

  /** @param {{x: number, y: number, width: number}} nextBox Where the lanes stand: below the heatmap. */
  function draw(next, nextBox) {
    [model, box] = [next, nextBox];
    drawLanes(prepare(element).context, box, { ...model, gutter: true }, model.palette);
  }
  return { element, draw };
}
