/** Names of runs, shortened where they do not differ. */

const LONG = 24;
const TAIL = 12;

/** @param {string} run */
export const titleOf = (run) => (run === "." ? "(this run)" : run);

/**
 * How many characters all names have in common, up to a place where a word ends.
 * @param {string[]} names
 */
function commonStart(names) {
  const [first = "", ...others] = names;
  let length = first.length;
  for (const name of others) while (!name.startsWith(first.slice(0, length))) length -= 1;
  const words = first.slice(0, length).match(/^.*[/_\-, ]/);
  return words ? words[0].length : 0;
}

/**
 * What is left of long names without the beginning that all have in common.
 * @param {string[]} names
 * @returns {(name: string) => string}
 */
export function shortener(names) {
  const start = names.length > 1 && names.some(({ length }) => length > LONG) ? commonStart(names) : 0;
  return (name) => (start && name.length > start ? `…${name.slice(start)}` : titleOf(name));
}

/**
 * A name in two parts, of which the first gives way where there is too little room: names differ at their ends.
 * @param {string} name
 * @returns {[head: string, tail: string]}
 */
export const ends = (name) => (name.length > LONG ? [name.slice(0, -TAIL), name.slice(-TAIL)] : [name, ""]);
