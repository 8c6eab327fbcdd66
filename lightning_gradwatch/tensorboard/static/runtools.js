/** What finds a run among many: a search, how many there are of each verdict, the order. */
import { h, setOptions } from "./dom.js";
import { SORTS, counts } from "./order.js";
import { statusWord } from "./tables.js";

/** @typedef {ReturnType<typeof createChip>} Chip */

/**
 * @param {(patch: Partial<State>) => void} choose
 * @param {HTMLElement} more Opens the list.
 */
export function createRunTools(choose, more) {
  const find = h("input", {
    type: "search", class: "find", placeholder: "Find a run", "aria-label": "Find a run",
    title: "Words that stand in the name, or in what is said of the run",
    oninput: () => choose({ find: find.value.trim() || null }),
  });
  const sort = h("select", {
    "aria-label": "Order of the runs",
    onchange: () => choose({ sort: sort.value === "sickest" ? null : /** @type {Sort} */ (sort.value) }),
  });
  const verdicts = h("div", { class: "verdicts", role: "group", "aria-label": "Only runs that are" });
  const note = h("span", { class: "muted", role: "status" });
  const hidden = h("button", { type: "button", class: "link" });
  const element = h(
    "div", { class: "run-tools", role: "search", "aria-label": "Runs" }, find, verdicts, note, more, hidden, sort,
  );
  const chips = /** @type {Map<Status, Chip>} */ (new Map());
  let isAll = false;
  hidden.addEventListener("click", () => choose({ all: isAll ? null : "1" }));

  /**
   * @param {RunRow[]} rows Those that TensorBoard's own selection leaves, or all.
   * @param {number} numShown
   * @param {number} numHidden How many that selection leaves out.
   * @param {State} state
   */
  function update(rows, numShown, numHidden, state) {
    if (document.activeElement !== find) find.value = state.find ?? "";
    setOptions(sort, Object.entries(SORTS), state.sort ?? "sickest");
    const found = counts(rows, state.find ?? "");
    for (const [status, chip] of chips) if (!found.has(status)) (chip.element.remove(), chips.delete(status));
    for (const [status, count] of found) {
      const chip = chips.get(status) ?? createChip(status, choose);
      if (!chips.has(status)) verdicts.append(chip.element);
      chips.set(status, chip);
      chip.update(count, state.verdict);
    }
    note.textContent = numShown < rows.length ? `${numShown} of ${rows.length} runs` : `${rows.length} runs`;
    isAll = Boolean(state.all);
    hidden.hidden = !numHidden;
    hidden.textContent = isAll
      ? "only those that TensorBoard's own selection shows"
      : `${numHidden} more hidden by TensorBoard's own selection: show`;
  }
  return { element, update };
}

/**
 * @param {Status} status
 * @param {(patch: Partial<State>) => void} choose
 */
function createChip(status, choose) {
  const number = h("b");
  /** @type {Status[]} */
  let chosen = [];
  const toggle = () =>
    choose({ verdict: chosen.includes(status) ? chosen.filter((one) => one !== status) : [...chosen, status] });
  const element = h(
    "button", { type: "button", class: "verdict", "data-status": status, onclick: toggle },
    number, ` ${statusWord(status)}`,
  );
  /**
   * @param {number} count
   * @param {Status[]} next
   */
  function update(count, next) {
    chosen = next;
    number.textContent = String(count);
    element.setAttribute("aria-pressed", String(next.includes(status)));
  }
  return { element, update };
}
