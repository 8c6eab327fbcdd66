/** The application: state and source in, the page out. */
import { actionsOf } from "./actions.js";
import { remember } from "./data.js";
import { saveNumbers, savePicture } from "./export.js";
import { createFollowUp } from "./followup.js";
import { createLoader } from "./loader.js";
import { createPage } from "./page.js";
import { createPainter } from "./painter.js";
import { INITIAL, LISTING, createStore } from "./state.js";

/** Changes of these need no new data for the heatmap. */
const CURSOR = /** @type {Set<keyof State>} */ (new Set(["layer", "step", "loss"]));

/** Changes of these concern the list of runs alone. */
const LIST = /** @type {Set<keyof State>} */ (new Set(LISTING));

/**
 * @param {Source} source
 * @param {Partial<State>} initial The state to open with.
 * @param {(state: State) => void} remembered Called with every new state.
 */
export function createApp(source, initial, remembered) {
  const store = createStore(initial);
  /** @type {Scene} */
  const scene = { runs: [], others: [], view: null, model: null, isLoading: false };
  const ask = remember(source);
  const page = createPage({
    ...actionsOf(store, scene),
    retry: () => loader.look(true),
    seen: () => loader.thumbnails(),
    png: () => scene.model && savePicture(scene.model, page.chart.boxes(), page.lines.pictures()),
    csv: () => scene.model && saveNumbers(scene.model),
  });
  const followUp = createFollowUp({ ask, store, scene, page, fail: (error) => loader.fail(error) });
  const painter = createPainter({ store, scene, page, drawn: followUp.rest });
  const loader = createLoader({ source, ask, store, scene, page, painter });

  store.subscribe((state, changed) => {
    remembered(state);
    if (changed.every((name) => LIST.has(name))) loader.list();
    else if (changed.every((name) => CURSOR.has(name))) painter.draw();
    else loader.update();
  });
  followWidth(page.element, painter.draw);

  function repaint() {
    painter.repaint();
    page.strip.outdate();
    loader.thumbnails();
  }
  /** Another address: a link that was followed, or another selection of TensorBoard's own. */
  function open(/** @type {Partial<State>} */ linked) {
    store.set({ ...INITIAL, ...linked });
    loader.list();
  }
  return { element: page.element, look: loader.look, repaint, open };
}

/**
 * Call `changed` whenever an element has become wider or narrower.
 * @param {HTMLElement} element
 * @param {() => void} changed
 */
function followWidth(element, changed) {
  let width = 0;
  const resized = () => {
    const now = element.clientWidth;
    if (now && now !== width) changed();
    width = now;
  };
  new ResizeObserver(() => requestAnimationFrame(resized)).observe(element);
}
