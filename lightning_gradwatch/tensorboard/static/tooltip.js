/** The box beside the pointer. */
import { h } from "./dom.js";

const DISTANCE = 14;

/** @returns {Tooltip} */
export function createTooltip() {
  const element = h("div", { class: "tooltip", "aria-hidden": "true", hidden: true });
  /**
   * @param {MouseEvent} pointer
   * @param {string} title
   * @param {string[]} lines
   */
  function show({ clientX: x, clientY: y }, title, lines) {
    element.replaceChildren(h("strong", { text: title }), ...lines.map((text) => h("span", { text })));
    element.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = element;
    const left = x + DISTANCE + width > window.innerWidth ? x - DISTANCE - width : x + DISTANCE;
    const top = y + DISTANCE + height > window.innerHeight ? y - DISTANCE - height : y + DISTANCE;
    element.style.transform = `translate(${Math.max(left, 4)}px, ${Math.max(top, 4)}px)`;
  }
  return { element, show, hide: () => void (element.hidden = true) };
}
