/** The runs: cards in a row, or a list with tools where there are more of them than fit. */
import { h } from "./dom.js";
import { shortener } from "./names.js";
import { SORTS, listed } from "./order.js";
import { createCard } from "./runcard.js";
import { createRunTools } from "./runtools.js";

/** Pixels that a card takes at least, with the gap. */
const CARD = 178;
/** Runs up to which the list needs no button that opens it. */
const FEW = 5;

/** @type {Record<string, (place: number, last: number) => number>} */
const KEYS = {
  ArrowDown: (place) => place + 1, ArrowRight: (place) => place + 1,
  ArrowUp: (place) => place - 1, ArrowLeft: (place) => place - 1,
  PageDown: (place) => place + FEW, PageUp: (place) => place - FEW,
  Home: () => 0, End: (_, last) => last,
};

/**
 * @param {Pick<Actions, "chooseRun"|"choose">} actions
 * @param {() => void} seen Called when other runs can be seen than before, so that they get their pictures.
 */
export function createRunStrip({ chooseRun, choose }, seen) {
  const list = h("div", { class: "strip", role: "group" });
  const none = h("p", { class: "muted", text: "No run fits: try another word, or another verdict.", hidden: true });
  const more = h("button", { type: "button", class: "link", "aria-expanded": "false", onclick: open });
  const tools = createRunTools(choose, more);
  const element = h("section", { class: "runs", "aria-label": "Runs" }, tools.element, list, none);
  const cards = /** @type {Map<string, ReturnType<typeof createCard>>} */ (new Map());
  const visible = watchSeen(seen);
  list.addEventListener("keydown", (event) => walk(list, event));
  let wasList = false;
  /** @type {{rows: RunRow[], numHidden: number, chosen: string|null, state: State}|null} */
  let last = null;
  let broughtIntoView = "";
  new ResizeObserver(() => requestAnimationFrame(() => layOut())).observe(element);

  function cardOf(/** @type {string} */ run) {
    const card = cards.get(run) ?? createCard(run, chooseRun);
    if (!cards.has(run)) visible.observe(card.element);
    cards.set(run, card);
    return card;
  }

  /**
   * @param {RunRow[]} rows The sickest first.
   * @param {number} numHidden How many TensorBoard's own selection leaves out.
   * @param {string|null} chosen
   * @param {State} state
   */
  function update(rows, numHidden, chosen, state) {
    last = { rows, numHidden, chosen, state };
    const shown = listed(rows, state);
    const known = new Set(rows.map(({ run }) => run));
    for (const [run, card] of cards) if (!known.has(run)) forget(run, card);
    const nameOf = shortener(rows.map(({ run }) => run));
    const elements = shown.map((row) => {
      const card = cardOf(row.run);
      card.update(row, nameOf(row.run), row.run === chosen);
      return card.element;
    });
    if (elements.some((one, i) => list.children[i] !== one) || list.children.length !== elements.length) {
      list.replaceChildren(...elements);
    }
    list.setAttribute("aria-label", `Runs, ${SORTS[state.sort ?? "sickest"] ?? SORTS.sickest}`);
    none.hidden = shown.length > 0 || !rows.length;
    tools.update(rows, shown.length, numHidden, state);
    layOut();
  }

  /** Cards, or a list where they do not fit; what is chosen is brought into view once. */
  function layOut() {
    if (!last) return;
    const { rows, numHidden, chosen, state } = last;
    const fits = Math.floor((element.clientWidth + 10) / CARD);
    const isList = rows.length > Math.max(fits, 1);
    tools.element.hidden = !(isList || numHidden || state.find || state.verdict.length);
    more.hidden = !isList || list.children.length <= FEW;
    more.textContent = list.classList.contains("open") ? "show fewer" : "show all";
    if (list.classList.toggle("rows", isList) !== wasList) redraw(isList);
    const card = chosen === null ? null : cards.get(chosen)?.element;
    giveTab(list, card?.isConnected ? card : list.children[0]);
    if (card?.isConnected && broughtIntoView !== chosen) bringIntoView(list, card);
    broughtIntoView = chosen ?? "";
  }

  /** Another size of the pictures. */
  function redraw(/** @type {boolean} */ isList) {
    wasList = isList;
    for (const card of cards.values()) card.outdate();
    seen();
  }

  function open() {
    const isOpen = list.classList.toggle("open");
    more.setAttribute("aria-expanded", String(isOpen));
    layOut();
  }

  /**
   * @param {string} run
   * @param {ReturnType<typeof createCard>} card
   */
  function forget(run, card) {
    visible.forget(card.element);
    cards.delete(run);
  }

  /** Runs that are seen and whose picture is not that of their stamp. */
  const wanting = () => (last?.rows ?? []).filter(({ run, stamp }) => visible.has(run) && cards.get(run)?.lacks(stamp));

  /**
   * @param {RunRow} row
   * @param {Picture|null} picture
   * @param {Palette} palette
   */
  const drawThumbnail = (row, picture, palette) => cards.get(row.run)?.draw(picture, palette, row.stamp);
  const outdate = () => cards.forEach((card) => card.outdate());
  return { element, update, wanting, drawThumbnail, outdate };
}

/**
 * Let the tab key reach one of the runs; the arrow keys reach the others.
 * @param {HTMLElement} list
 * @param {Element|undefined} chosen
 */
function giveTab(list, chosen) {
  for (const one of list.children) one.setAttribute("tabindex", one === chosen ? "0" : "-1");
}

/**
 * Go to another run with the keys.
 * @param {HTMLElement} list
 * @param {KeyboardEvent} event
 */
function walk(list, event) {
  const all = /** @type {HTMLElement[]} */ ([...list.children]);
  const place = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const next = KEYS[event.key]?.(place, all.length - 1);
  if (place < 0 || next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const target = all[Math.min(Math.max(next, 0), all.length - 1)];
  giveTab(list, target);
  target.focus();
}

/**
 * The runs that can be seen, by their names.
 * @param {() => void} changed
 */
function watchSeen(changed) {
  const runs = /** @type {Set<string>} */ (new Set());
  const nameOf = (/** @type {Element} */ one) => /** @type {HTMLElement} */ (one).dataset.run ?? "";
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) runs[isIntersecting ? "add" : "delete"](nameOf(target));
      changed();
    },
    { rootMargin: "100px" },
  );
  function forget(/** @type {Element} */ one) {
    observer.unobserve(one);
    runs.delete(nameOf(one));
  }
  const observe = (/** @type {Element} */ one) => observer.observe(one);
  const has = (/** @type {string} */ run) => runs.has(run);
  return { observe, forget, has };
}

/**
 * Scroll the list, and nothing else.
 * @param {HTMLElement} list
 * @param {HTMLElement} card
 */
function bringIntoView(list, card) {
  const [top, bottom] = [card.offsetTop, card.offsetTop + card.offsetHeight];
  const [start, height] = [list.scrollTop, list.clientHeight];
  if (top < start || bottom > start + height) list.scrollTop = top - height / 3;
}
