/** What the person has chosen; everything else follows from it and from the data. */

/** `step` null: the newest. `zoom` null: all steps. `layer` and `quantity` null: what the run suggests. */
export const INITIAL = {
  run: null,
  optimizer: null,
  quantity: null,
  layer: null,
  step: null,
  zoom: null,
  folded: [],
  compare: null,
  loss: null,
};

/** A state that tells its listeners what has changed. */
export function createStore(initial) {
  let state = { ...INITIAL, ...initial };
  const listeners = [];
  return {
    get: () => state,
    set(patch) {
      const before = state;
      state = { ...state, ...patch };
      const changed = Object.keys(patch).filter((name) => JSON.stringify(before[name]) !== JSON.stringify(state[name]));
      if (changed.length) listeners.forEach((listener) => listener(state, changed));
    },
    subscribe: (listener) => listeners.push(listener),
  };
}
