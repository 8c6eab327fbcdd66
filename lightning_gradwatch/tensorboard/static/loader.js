/** From the state to a page: look for news, load what is asked for, hand it to the painter. */
import { createListing } from "./listing.js";
import { chosenRun, loadView } from "./model.js";
import { createOthers } from "./others.js";
import { adopt } from "./tables.js";

/** @param {{source: Source, ask: Ask, store: Store, scene: Scene, page: Page, painter: Painter}} parts */
export function createLoader({ source, ask, store, scene, page, painter }) {
  const about = createOthers(source);
  const listing = createListing({ store, scene, page });
  let signature = "";
  let isTaught = false;
  /** Whether the first heatmap stands, or there is none. */
  let isShown = false;
  /** Answers that come after the next question are dropped. */
  let turn = 0;
  /** The run whose heatmap is drawn, or is about to be. */
  let chosen = /** @type {string|null} */ (null);

  /** Look for news; load again only if there are any, or if `isForced`. */
  async function look(isForced = false) {
    try {
      if (!isTaught) adopt(await source.tables());
      isTaught = true;
      scene.runs = await source.runs();
      const now = JSON.stringify(scene.runs);
      if (now !== signature || isForced === true) {
        signature = now;
        await update();
      }
      page.toolbar.setLive(...listing.progress(chosen));
    } catch (error) {
      fail(/** @type {Error} */ (error));
    }
  }

  function fail(/** @type {Error} */ error) {
    isShown = true;
    page.trouble.show(error.message);
    page.toolbar.setLive("not up to date", "unknown");
    signature = "";
    scene.isLoading = false;
    page.setBusy(false);
  }

  /** Load and draw what the state asks for. */
  async function update() {
    turn += 1;
    const isStale = staleness();
    scene.isLoading = true;
    page.setBusy(true);
    markStart();
    const wanted = store.get().run;
    const row = chosenRun(scene.runs, listing.offered(), wanted);
    chosen = row?.run ?? null;
    page.unknown(wanted !== null && wanted !== chosen ? wanted : null, chosen);
    list();
    try {
      const next = row ? await loadView(ask, scene.runs, row, store.get(), page.columns(), scene.view) : null;
      if (isStale()) return;
      show(next);
      thumbnails();
      const { view } = scene;
      const found = view ? await about.partners(scene.runs, view) : [];
      if (isStale()) return;
      [scene.others, scene.isLoading] = [found, false];
      if (scene.view) painter.draw();
      else page.setBusy(false);
    } catch (error) {
      if (!isStale()) fail(/** @type {Error} */ (error));
    }
  }

  /** Whether somebody has asked for something else since now. */
  function staleness() {
    const mine = turn;
    return () => mine !== turn;
  }

  /** @param {Awaited<ReturnType<typeof loadView>>|null} next */
  function show(next) {
    scene.view = next?.view ?? null;
    isShown = true;
    page.trouble.hide();
    if (!scene.view) {
      scene.model = null;
      page.showEmpty(next?.run ?? null, scene.runs.some(({ status }) => status !== "not_watched"));
      return;
    }
    page.showView();
    painter.draw();
    performance.measure("gradwatch-drawn", "gradwatch-load");
    const { zoom } = scene.view;
    if (JSON.stringify(zoom) !== JSON.stringify(store.get().zoom)) store.set({ zoom });
  }

  const list = () => listing.update(chosen);

  /** The small pictures of the runs that are seen, once the heatmap stands: they do not compete with it. */
  const thumbnails = () => isShown && about.thumbnails(page.strip.wanting, painter.drawThumbnail);

  return { look, update, list, fail, thumbnails };
}

/** How long loading takes can be read from the browser's own timeline. */
function markStart() {
  performance.clearMarks("gradwatch-load");
  performance.clearMeasures("gradwatch-drawn");
  performance.mark("gradwatch-load");
}
