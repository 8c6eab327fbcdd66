/** Deep links: the state in the address of TensorBoard, under the names that it leaves to plugins (or plain ones). */
import { INITIAL } from "./state.js";

const PREFIX = "p.gradwatch.";
const NUMBERS = ["step", "zoom"];
const LISTS = ["zoom", "folded", "opened", "verdict"];

/** The window whose address the person sees and copies; the own one where the outer one is closed to us. */
function addressed() {
  try {
    void window.parent.location.hash;
    return window.parent;
  } catch {
    return window;
  }
}

/**
 * `#gradwatch&p.gradwatch.run=a&...` as a state.
 * @param {string} hash
 * @returns {Partial<State>}
 */
function parseHash(hash) {
  const state = /** @type {Record<string, unknown>} */ ({});
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [key, text = ""] = part.split("=").map(decode);
    const name = plain(key);
    if (!(name in INITIAL)) continue;
    const items = LISTS.includes(name) ? text.split(",").filter(Boolean).map(decode) : [text];
    const values = NUMBERS.includes(name) ? items.map(Number) : items;
    if (NUMBERS.includes(name) && !values.every(Number.isFinite)) continue;
    if (name === "zoom" && !(values.length === 2 && values[0] < values[1])) continue;
    state[name] = LISTS.includes(name) ? values : values[0];
  }
  return state;
}

/** @param {string} key */
const plain = (key) => (key.startsWith(PREFIX) ? key.slice(PREFIX.length) : key);

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * The hash with the state in it; what belongs to others stays.
 * @param {string} hash
 * @param {State} state
 */
function formatHash(hash, state) {
  const isOther = (/** @type {string} */ part) => part && !(plain(decode(part.split("=")[0])) in INITIAL);
  const others = hash.replace(/^#/, "").split("&").filter(isOther);
  const own = Object.keys(INITIAL)
    .map((name) => [name, state[/** @type {keyof State} */ (name)]])
    .filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => {
      const text = Array.isArray(value) ? value.map(encodeURIComponent).join(",") : value;
      return `${PREFIX}${name}=${encodeURIComponent(String(text))}`;
    });
  return `#${[...(others.length ? others : ["gradwatch"]), ...own].join("&")}`;
}

/** The address itself, of which TensorBoard writes the rest. */
export const address = () => addressed().location;

/** The state in the address. */
export const readLink = () => parseHash(addressed().location.hash);

/**
 * Put the state into the address, without a new entry in the history; whole, for the frame's `base` lies elsewhere.
 * @param {State} state
 */
export function writeLink(state) {
  const { location, history } = addressed();
  const tab = location.hash.replace(/^#/, "").split("&")[0];
  if (tab && tab !== "gradwatch" && !tab.startsWith(PREFIX)) return;
  const hash = formatHash(location.hash, state);
  if (hash !== location.hash) history.replaceState(history.state, "", location.pathname + location.search + hash);
}

/**
 * Follow a link that is opened while the tab is.
 * @param {(linked: Partial<State>) => void} changed
 */
export function followLink(changed) {
  const listener = () => changed(readLink());
  const target = addressed();
  target.addEventListener("hashchange", listener);
  window.addEventListener("pagehide", () => target.removeEventListener("hashchange", listener));
}
