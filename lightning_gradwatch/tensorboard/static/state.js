/** What the person has chosen; everything else follows from it and from the data. */

/**
 * `norm` null: the usual one. `hide` null: nothing. `step` null: the newest. `zoom` null: all steps. `layer` and
 * `quantity` null: what the run suggests. `sort` null: the sickest first. `all` null: the runs that TensorBoard's own
 * selection leaves.
 * @type {State}
 */
export const INITIAL = {
  run: null,
  optimizer: null,
  quantity: null,
  norm: null,
  hide: null,
  layer: null,
  step: null,
  zoom: null,
  folded: [],
  opened: [],
  compare: null,
  loss: null,
  find: null,
  verdict: [],
  sort: null,
  all: null,
};

/** What concerns the list of runs alone: it stays when another run is chosen, and needs no data. */
export const LISTING = /** @type {const} */ (["find", "verdict", "sort", "all"]);

/**
 * A state that tells its listeners what has changed.
 * @param {Partial<State>} initial
 * @returns {Store}
 */
export function createStore(initial) {
  let state = { ...INITIAL, ...initial };
  const listeners = /** @type {Parameters<Store["subscribe"]>[0][]} */ ([]);
  return {
    get: () => state,
    set(patch) {
      const before = state;
      state = { ...state, ...patch };
      const names = /** @type {(keyof State)[]} */ (Object.keys(patch));
      const changed = names.filter((name) => JSON.stringify(before[name]) !== JSON.stringify(state[name]));
      if (changed.length) listeners.forEach((listener) => listener(state, changed));
    },
    subscribe: (listener) => void listeners.push(listener),
  };
}
