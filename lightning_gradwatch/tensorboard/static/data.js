/** Answers of the source, kept as long as their run has not changed. */

const KEPT = 24;

/**
 * A source that remembers. Every question comes with the run's stamp: an answer with another stamp is out of date and
 * makes way, and of all answers only the latest ones are kept.
 * @param {Source} source
 * @param {number} kept
 * @returns {Ask}
 */
export function remember(source, kept = KEPT) {
  const answers = /** @type {Map<string, {stamp: string, answer: Promise<any>}>} */ (new Map());
  return (method, query, stamp) => {
    const key = JSON.stringify([method, query]);
    const known = answers.get(key);
    const answer = known?.stamp === stamp ? known.answer : source[method](query);
    answers.delete(key);
    answers.set(key, { stamp, answer });
    answer.catch(() => answers.get(key)?.answer === answer && answers.delete(key));
    if (answers.size > kept) answers.delete([...answers.keys()][0]);
    return /** @type {any} */ (answer);
  };
}
