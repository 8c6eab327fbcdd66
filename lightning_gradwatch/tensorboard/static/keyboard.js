/** The keys of the heatmap. */

/** @param {Object} actions `moveRow(by)`, `moveColumn(by)`, `toEnd(isLast)`, `zoom(factor)`, `reset()`, `cycle(by)`, `fold()`, `help()`. */
export function keysOf(actions) {
  const keys = {
    ArrowUp: () => actions.moveRow(-1),
    ArrowDown: () => actions.moveRow(1),
    PageUp: () => actions.moveRow(-10),
    PageDown: () => actions.moveRow(10),
    ArrowLeft: () => actions.moveColumn(-1),
    ArrowRight: () => actions.moveColumn(1),
    Home: () => actions.toEnd(false),
    End: () => actions.toEnd(true),
    "+": () => actions.zoom(0.5),
    "=": () => actions.zoom(0.5),
    "-": () => actions.zoom(2),
    Escape: () => actions.reset(),
    q: () => actions.cycle(1),
    Q: () => actions.cycle(-1),
    f: () => actions.fold(),
    "?": () => actions.help(),
  };
  return (event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  };
}
