/** What a person does, as changes of the state. Nothing here draws. */
import * as moves from "./moves.js";
import { INITIAL } from "./state.js";
import { zoomed } from "./steps.js";

/**
 * @param {Store} store
 * @param {Scene} scene What is drawn: where nothing is, most actions do nothing.
 * @returns {Actions}
 */
export function actionsOf(store, scene) {
  const { get, set } = store;
  /**
   * @template {any[]} Values
   * @param {(model: Model, ...values: Values) => Partial<State>} move
   * @returns {(...values: Values) => void}
   */
  const where = (move) => (...values) => scene.model && set(move(scene.model, ...values));
  const zoom = where(({ full }, /** @type {Interval} */ [from, to]) => ({
    zoom: zoomed([from, to], full, 1, (from + to) / 2),
  }));
  /** @type {Actions["wheel"]} */
  const wheel = (factor, step) => scene.model && zoom(zoomed(scene.model.domain, scene.model.full, factor, step));
  return {
    choose: set,
    chooseLoss: (loss) => set({ loss }),
    chooseRun(run) {
      const { quantity, norm, hide, find, verdict, sort, all } = get();
      set({ ...INITIAL, run, quantity, norm, hide, find, verdict, sort, all });
    },
    set: (patch) => set(moves.chooseView(patch)),
    move: where(moves.moveRow),
    moveColumn: where((model, /** @type {number} */ by) => moves.moveColumn(model, get().step, by)),
    toEnd: where((model, /** @type {boolean} */ isLast) => moves.moveToEnd(model, get().step, isLast)),
    cycle: where(moves.cycle),
    fold: where((model, /** @type {string} */ path) => moves.toggle(model, get(), path)),
    foldHere: where((model) => moves.toggleHere(model, get())),
    foldAll: where(moves.foldAll),
    find: where((model, /** @type {string} */ text, /** @type {number} */ by, /** @type {string[]} */ opened) =>
      moves.find(model, get(), text, by, opened)),
    toSickest: where((model) => moves.toSickest(model, get())),
    showAlert: where((model, /** @type {Alert} */ alert) => moves.showAlert(model, get(), alert)),
    zoom,
    wheel,
    zoomHere(factor) {
      if (!scene.model) return;
      const { domain: [low, high], frame, column } = scene.model;
      wheel(factor, Math.min(Math.max(frame.steps[column], low), high));
    },
    reset: () => set({ zoom: null }),
  };
}
