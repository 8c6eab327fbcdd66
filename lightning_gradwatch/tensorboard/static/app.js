/** The application: state and source in, the page out. */
import { remember } from "./data.js";
import { describe, sentence } from "./describe.js";
import { exactCells, layerOf, linesOf, overlaysOf } from "./details.js";
import { fileName, save, toCanvas, toCsv } from "./export.js";
import { formatStep } from "./format.js";
import { keysOf } from "./keyboard.js";
import { chosenRun, loadView, toModel } from "./model.js";
import * as moves from "./moves.js";
import { createOthers } from "./others.js";
import { createPage } from "./page.js";
import { INITIAL, createStore } from "./state.js";
import { zoomed } from "./steps.js";
import { readPalette } from "./theme.js";

/** Changes of these need no new data for the heatmap. */
const CURSOR = new Set(["layer", "step", "folded", "loss"]);
/** Pixels of the page beside the heatmap. */
const BESIDE = 520;
/** Milliseconds that the cursor rests before details are asked for. */
const REST = 60;

/**
 * @param {Object} source See `httpSource`.
 * @param {Object} initial The state to open with.
 * @param {function(Object)} remembered Called with every new state.
 * @returns {{element: HTMLElement, look: function, open: function, repaint: function}}
 */
export function createApp(source, initial, remembered) {
  const store = createStore(initial);
  const ask = remember(source);
  const about = createOthers(source);
  const page = createPage(actionsOf());
  let runs = [];
  let signature = null;
  let others = [];
  /** What is loaded, what is drawn of it, and in which colours. */
  let view = null;
  let model = null;
  let palette = null;
  /** Answers that come after the next question are dropped. */
  let turn = 0;
  let detailTimer = 0;
  let isLoading = false;

  function actionsOf() {
    const set = (patch) => store.set(patch);
    const move = (by) => model && set(moves.moveRow(model, by));
    const zoom = ([from, to]) => view && set({ zoom: zoomed([from, to], view.full, 1, (from + to) / 2) });
    const wheel = (factor, step) => view && zoom(zoomed(view.domain, view.full, factor, step));
    const zoomHere = (factor) => {
      const [low, high] = view.domain;
      wheel(factor, Math.min(Math.max(model.frame.steps[model.column], low), high));
    };
    const reset = () => set({ zoom: null });
    const showAlert = (alert) => {
      set(moves.showAlert(view, store.get(), alert));
      page.chart.plot.focus();
    };
    const guard = (act) => (...values) => model && act(...values);
    const key = keysOf({
      moveRow: move,
      moveColumn: guard((by) => set(moves.moveColumn(model, store.get().step, by))),
      toEnd: guard((isLast) => set(moves.moveToEnd(model, store.get().step, isLast))),
      cycle: guard((by) => set(moves.cycle(model, by))),
      fold: guard(() => set(moves.toggleHere(model, store.get().folded))),
      zoom: guard(zoomHere),
      reset,
      help: () => page.help.open(),
    });
    return {
      key, move, zoom, wheel, reset, showAlert, png, csv,
      choose: set,
      chooseLoss: (loss) => set({ loss }),
      chooseRun: (run) => set({ ...INITIAL, run, quantity: store.get().quantity }),
      set: (patch) => set(moves.chooseView(patch)),
      fold: (path) => set(moves.toggle(store.get().folded, path)),
      foldAll: (isFolded) => set(moves.foldAll(view, isFolded)),
      hover: (step) => page.hover(step),
      retry: () => look(true),
    };
  }

  /** Look for news; load again only if there are any, or if `isForced`. */
  async function look(isForced = false) {
    try {
      runs = await source.runs();
      const now = JSON.stringify(runs);
      if (now !== signature || isForced === true) {
        signature = now;
        await update();
      }
      page.toolbar.setLive(liveText());
    } catch (error) {
      fail(error);
    }
  }

  function liveText() {
    const step = chosenRun(runs, store.get().run)?.last_step ?? null;
    return step === null ? "live" : `live · step ${formatStep(step)}`;
  }

  function fail(error) {
    page.trouble.show(error.message);
    page.toolbar.setLive("not up to date");
    signature = null;
    isLoading = false;
    page.setBusy(false);
  }

  /** One for each pixel of the heatmap, or of what it is going to be, in hundreds. */
  function columns() {
    const width = page.chart.boxes().plot || document.documentElement.clientWidth - BESIDE;
    return Math.min(Math.max(Math.ceil(width / 100) * 100, 200), 2000);
  }

  /** Load and draw what the state asks for. */
  async function update() {
    const mine = (turn += 1);
    const isStale = () => mine !== turn;
    isLoading = true;
    page.setBusy(true);
    markStart();
    const row = chosenRun(runs, store.get().run);
    try {
      const next = row ? await loadView(ask, runs, row, store.get(), columns(), view) : null;
      if (isStale()) return;
      show(next);
      await about.thumbnails(runs, isStale, drawThumbnail);
      const found = view ? await about.partners(runs, row.run, view.optimizer) : [];
      if (isStale()) return;
      [others, isLoading] = [found, false];
      if (view) draw();
      else page.setBusy(false);
    } catch (error) {
      if (!isStale()) fail(error);
    }
  }

  function show(next) {
    view = next && !next.isEmpty ? next : null;
    page.trouble.hide();
    page.strip.update(runs, next?.run.run ?? null);
    if (!view) {
      model = null;
      page.showEmpty(next?.run ?? null, runs.some(({ status }) => status !== "not_watched"));
      return;
    }
    page.showView();
    draw();
    performance.measure("gradwatch-drawn", "gradwatch-load");
    if (JSON.stringify(view.zoom) !== JSON.stringify(store.get().zoom)) store.set({ zoom: view.zoom });
  }

  /** Draw what is there, with the cursor where it is now. */
  function draw() {
    if (!view) return;
    palette ??= readPalette();
    const next = toModel(view, store.get(), palette, others);
    const isSameView = model?.frame === next.frame && model.palette === palette;
    const overlays = isSameView ? model.overlays : [];
    const exact = isSameView && model.column === next.column ? model.exact : null;
    model = { ...next, overlays, exact };
    page.banner.update(view.run, view.run.alerts);
    page.toolbar.update(model);
    if (!page.chart.update(model)) return;
    page.say(sentence(describe(model, model.rows[model.row], model.column)));
    page.setBusy(true);
    clearTimeout(detailTimer);
    detailTimer = setTimeout(details, REST);
  }

  async function details() {
    const current = model;
    if (!current) return;
    const whenCurrent = (use) => (found) => current === model && use(found);
    const { gutter, plot } = page.chart.boxes();
    const step = current.frame.steps[current.column] ?? null;
    const dress = { width: plot, gutter, domain: current.domain, palette, step };
    const tasks = await Promise.allSettled([
      linesOf(ask, current, store.get().loss).then(whenCurrent((found) => page.lines.update(found, dress))),
      layerOf(ask, current, columns()).then(whenCurrent((found) => page.layerPanel.update(found, dress))),
      exactCells(ask, current).then(whenCurrent((exact) => redrawSide(current, { exact }))),
      overlaysOf(ask, current, others).then(whenCurrent((overlays) => redrawSide(current, { overlays }))),
    ]);
    if (current !== model) return;
    const failed = tasks.find(({ status }) => status === "rejected");
    if (failed) fail(failed.reason);
    else if (!isLoading) page.setBusy(false);
  }

  function redrawSide(current, found) {
    Object.assign(current, found);
    page.chart.redrawSide();
  }

  function drawThumbnail(run, thumbnail) {
    palette ??= readPalette();
    page.strip.drawThumbnail(run, thumbnail, palette);
  }

  function png() {
    if (!model) return;
    const canvas = toCanvas(model, page.chart.boxes(), page.lines.canvases(), view.rowOfRun.headline);
    canvas.toBlob((blob) => save(blob, fileName(model, "png")));
  }

  function csv() {
    if (model) save(new Blob([toCsv(model)], { type: "text/csv" }), fileName(model, "csv"));
  }

  function repaint() {
    palette = null;
    draw();
    const mine = turn;
    about.thumbnails(runs, () => mine !== turn, drawThumbnail);
  }

  store.subscribe((state, changed) => {
    remembered(state);
    if (changed.every((name) => CURSOR.has(name))) draw();
    else update();
  });
  let width = 0;
  const resized = () => {
    const now = page.element.clientWidth;
    if (now && now !== width) draw();
    width = now;
  };
  new ResizeObserver(() => requestAnimationFrame(resized)).observe(page.element);

  return { element: page.element, look, repaint, open: (linked) => store.set({ ...INITIAL, ...linked }) };
}

/** How long loading takes can be read from the browser's own timeline. */
function markStart() {
  performance.clearMarks("gradwatch-load");
  performance.clearMeasures("gradwatch-drawn");
  performance.mark("gradwatch-load");
}
