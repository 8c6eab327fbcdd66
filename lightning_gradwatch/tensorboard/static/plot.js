/** What all plots over steps share: pointer, brush and wheel, and the two lines at the chosen and the hovered step. */
import { h } from "./dom.js";
import { toStep, toX } from "./steps.js";

const CLICK = 4;

/** The two vertical lines over a plot. */
export function createCrosshair() {
  const chosen = h("div", { class: "crosshair chosen" });
  const hovered = h("div", { class: "crosshair hovered", hidden: true });
  /**
   * @param {HTMLElement} line
   * @param {number|null} step
   * @param {Interval} domain
   * @param {number} width
   */
  const place = (line, step, domain, width) => {
    const x = step === null ? -1 : toX(step, domain, { x: 0, width });
    line.hidden = !(x >= 0 && x <= width);
    line.style.transform = `translateX(${Math.round(x)}px)`;
  };

  /** @typedef {(step: number|null, domain: Interval, width: number) => void} Mark */
  return {
    elements: [chosen, hovered],
    choose: /** @type {Mark} */ ((...where) => place(chosen, ...where)),
    hover: /** @type {Mark} */ ((...where) => place(hovered, ...where)),
  };
}

/**
 * Listen to the pointer over a plot whose steps go from edge to edge.
 * @param {HTMLElement} element
 * @param {() => Interval} domainOf The steps at the edges.
 * @param {PointerActions} actions
 */
export function listen(element, domainOf, actions) {
  const brush = h("div", { class: "brush", hidden: true });
  element.append(brush);
  /** @type {{x: number, step: number}|null} */
  let start = null;
  const at = (/** @type {MouseEvent} */ event) => {
    const { left, top, width } = element.getBoundingClientRect();
    const x = Math.min(Math.max(event.clientX - left, 0), width);
    return { x, y: event.clientY - top, step: toStep(x, domainOf(), { x: 0, width }) };
  };
  const isDrag = (/** @type {number} */ x) => start !== null && Math.abs(x - start.x) > CLICK;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = at(event);
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    const { x, y, step } = at(event);
    brush.hidden = !isDrag(x);
    if (start && !brush.hidden) {
      brush.style.left = `${Math.min(x, start.x)}px`;
      brush.style.width = `${Math.abs(x - start.x)}px`;
    }
    actions.hover?.(step, y, event);
  });
  element.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const { x, y, step } = at(event);
    if (isDrag(x)) actions.zoom([Math.min(step, start.step), Math.max(step, start.step)]);
    else actions.click?.(step, y);
    start = null;
    brush.hidden = true;
  });
  element.addEventListener("pointercancel", () => {
    start = null;
    brush.hidden = true;
  });
  element.addEventListener("pointerleave", () => actions.leave?.());
  element.addEventListener("dblclick", () => actions.reset());
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    actions.wheel(event.deltaY > 0 ? 1.25 : 0.8, at(event).step);
  }, { passive: false });
}
