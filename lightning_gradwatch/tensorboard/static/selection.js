/** Which runs TensorBoard's own dashboards show, as far as its address tells: a plugin can know no more. */

/** Up to so many runs TensorBoard shows those that nobody has ticked. */
const SHOWN_UNTICKED = 40;

/**
 * The pattern by which runs are filtered; none that is no regular expression.
 * @param {string|null} text
 */
function pattern(text) {
  try {
    return text ? new RegExp(text) : null;
  } catch {
    return null;
  }
}

/**
 * The ticks, by run.
 * @param {string|null} text
 * @returns {Record<string, unknown>}
 */
function ticksOf(text) {
  try {
    return text ? JSON.parse(atob(text)) : {};
  } catch {
    return {};
  }
}

/**
 * Those of the runs that TensorBoard's runs selector leaves: it keeps ticks and filter in the hash, and the filter of
 * Time Series in the query. The ticks of Time Series stand nowhere.
 * @param {Pick<Location, "hash"|"search">} location
 * @param {string[]} runs
 * @returns {Set<string>}
 */
export function selected({ hash, search }, runs) {
  const stored = new URLSearchParams(hash.replace(/^#/, "").replaceAll("+", "%2B"));
  const patterns = [pattern(stored.get("regexInput")), pattern(new URLSearchParams(search).get("runFilter"))];
  const ticks = ticksOf(stored.get("runSelectionState"));
  const matching = runs.filter((run) => patterns.every((one) => !one || one.test(run)));
  const isUntickedShown = matching.length <= SHOWN_UNTICKED || !Object.values(ticks).some(Boolean);
  const left = matching.filter((run) => (run in ticks ? Boolean(ticks[run]) : isUntickedShown));
  return new Set(left.length ? left : runs);
}
