/** The entry: TensorBoard calls `render`. Nothing else in this folder knows that TensorBoard is there. */
import { httpSource } from "./source.js";

const here = (/** @type {string} */ path) => new URL(path, import.meta.url).href;

/** @param {string} address */
function loadStyle(address) {
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: address });
  return new Promise((done) => {
    link.onload = link.onerror = done;
    document.head.append(link);
  });
}

/**
 * A source whose first list of runs is on its way while the scripts are being loaded.
 * @returns {Source}
 */
function headStart() {
  const source = httpSource(here("../"));
  const first = { tables: source.tables(), runs: source.runs() };
  for (const answer of Object.values(first)) answer.catch(() => {});
  let isFirst = true;
  return {
    ...source,
    tables: () => first.tables.catch(() => source.tables()),
    runs() {
      const answer = isFirst ? first.runs : source.runs();
      isFirst = false;
      return answer;
    },
  };
}

export async function render() {
  document.documentElement.lang = "en";
  document.title = "GradWatch";
  const source = headStart();
  const [app] = await Promise.all([
    import("./start.js"), loadStyle(here("./vendor/uplot.css")), loadStyle(here("./style.css")),
  ]);
  await app.start(source);
}
