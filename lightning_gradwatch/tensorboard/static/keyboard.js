/** The keys of the heatmap. */

/** @typedef {"move" | "moveColumn" | "toEnd" | "zoomHere" | "reset" | "cycle"} Moves */
/** @typedef {Moves | "foldHere" | "help" | "search" | "toSickest"} Keys */

/** @param {Pick<PageActions, Keys>} actions */
export function keysOf(actions) {
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowUp: () => actions.move(-1),
    ArrowDown: () => actions.move(1),
    PageUp: () => actions.move(-10),
    PageDown: () => actions.move(10),
    ArrowLeft: () => actions.moveColumn(-1),
    ArrowRight: () => actions.moveColumn(1),
    Home: () => actions.toEnd(false),
    End: () => actions.toEnd(true),
    "+": () => actions.zoomHere(0.5),
    "=": () => actions.zoomHere(0.5),
    "-": () => actions.zoomHere(2),
    Escape: () => actions.reset(),
    q: () => actions.cycle(1),
    Q: () => actions.cycle(-1),
    f: () => actions.foldHere(),
    s: () => actions.toSickest(),
    "/": () => actions.search(),
    "?": () => actions.help(),
  };
  return (/** @type {KeyboardEvent} */ event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  };
}
