/** The one banner: what is wrong, since when, why, and what to try. All of it is text from a log, and stays text. */
import { bornOf } from "./born.js";
import { h, icon } from "./dom.js";
import { capital, formatStep } from "./format.js";
import { shapeOf } from "./status.js";
import { lostOf } from "./lost.js";
import { kindOf, statusWord } from "./tables.js";
import { trialsOf } from "./trials.js";

/**
 * The alert that matters most, as the server ranks them.
 * @param {Alert[]} alerts
 * @returns {Alert|null}
 */
export const foremost = (alerts) => [...alerts].sort((a, b) => a.rank - b.rank)[0] ?? null;

/**
 * What is wrong, in a sentence; all that an alert of an older version says.
 * @param {Alert} alert
 */
export const whatOf = ({ summary, message }) => summary || message;

/** @param {Alert} alert */
const since = ({ step, until_step: until }) =>
  until === null ? `since step ${formatStep(step)}` : `steps ${formatStep(step)} to ${formatStep(until)}, over now`;

/** @param {Pick<Actions, "showAlert">} actions */
export function createBanner({ showAlert }) {
  const element = h("section", { class: "banner", "aria-label": "What GradWatch found" });
  let signature = "";

  /**
   * @param {RunDocument} run
   * @param {Alert[]} alerts
   */
  function update(run, alerts) {
    const next = JSON.stringify([run, alerts]);
    if (next === signature) return;
    signature = next;
    const alert = foremost(alerts);
    element.dataset.status = run.status === "sick" && !alert ? "healthy" : run.status;
    element.replaceChildren(...(alert ? alertParts(alert, alerts, showAlert) : quietParts(run)));
    element.querySelector(".what")?.append(...damageParts(run, alert === null));
  }
  return { element, update };
}

/** What there is to do where nothing is wrong, or nobody knows. */
const ADVICE = /** @type {Partial<Record<Status, string>>} */ ({
  healthy: "Nothing to do.",
  recovered: "Nothing to do now. The lane of the alert below shows when it was.",
  unreadable: "What is missing here is no sign of health. Copy the log again, or look at the file that is named.",
});

/** Where a rule of the user was left out. */
const UNWATCHED = "Nobody knows what the rule would have found: that is no sign of health. Mend it, and train again.";

/** @param {RunDocument} run */
function quietParts({ status, headline, left_out: leftOut }) {
  const advice = leftOut.some(({ message }) => message === headline) ? UNWATCHED : ADVICE[status];
  return [
    icon(shapeOf(status), "mark"),
    h(
      "div",
      { class: "what" },
      h("h2", {}, verdict(status), h("span", { text: headline })),
      advice ? h("p", { class: "message", text: advice }) : null,
    ),
  ];
}

/**
 * How the run is, in a word.
 * @param {Status} status
 */
const verdict = (status) => h("span", { class: "verdict-word", text: `${capital(statusWord(status))}:` });

/**
 * What to try, one after the other.
 * @param {string[]} remedies
 */
const remedyList = (remedies) =>
  remedies.length > 1 ? h("ol", {}, ...remedies.map((text) => h("li", { text: capital(text) }))) : capital(remedies[0]);


/**
 * What cannot be read, and what the run went on without, where the headline does not tell.
 * @param {RunDocument} run
 * @param {boolean} isHeadlineShown
 */
function damageParts({ damage, left_out: leftOut, headline }, isHeadlineShown) {
  const untold = [...leftOut, ...damage].filter(({ message }) => !isHeadlineShown || message !== headline);
  return untold.map(({ message }) => h("p", { class: "damage", text: message }));
}

/**
 * @param {Alert} alert
 * @param {Alert[]} alerts
 * @param {Actions["showAlert"]} showAlert
 */
function alertParts(alert, alerts, showAlert) {
  const isOver = alert.until_step !== null;
  const status = isOver ? "recovered" : alert.level === "alert" ? "sick" : "notice";
  const where = alert.layer ? ` · ${alert.layer}` : "";
  const whose = alert.optimizer ? ` · ${alert.optimizer}` : "";
  const others = alerts.length - 1;
  const remedies = alert.remedies ?? [];
  const parts = [
    ...(alert.evidence ? [h("dt", { text: "Why" }), h("dd", { text: capital(alert.evidence) })] : []),
    ...(remedies.length ? [h("dt", { text: "Try" }), h("dd", {}, remedyList(remedies))] : []),
  ];
  return [
    icon(shapeOf(status), "mark"),
    h(
      "div",
      { class: "what" },
      h(
        "h2",
        {},
        verdict(status),
        h("span", { text: alert.title || kindOf(alert.kind).title }),
        h("span", { class: "when", text: `${since(alert)}${where}${whose}` }),
      ),
      h("p", { class: "message", text: whatOf(alert) }),
      h("dl", {}, ...parts),
      lostOf(alert),
      bornOf(alert),
      trialsOf(alert),
    ),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", class: "button", text: "Show where", onclick: () => showAlert(alert) }),
      others ? h("span", { class: "others", text: `and ${others} more below` }) : null,
    ),
  ];
}
