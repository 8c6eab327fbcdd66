/** The entry: TensorBoard calls `render`. Nothing else in this folder knows that TensorBoard is there. */
import { createApp } from "./app.js";
import { h } from "./dom.js";
import { followLink, readLink, writeLink } from "./link.js";
import { poll } from "./poll.js";
import { httpSource } from "./source.js";
import { adoptFonts, followTheme } from "./theme.js";

const here = (/** @type {string} */ path) => new URL(path, import.meta.url).href;

function loadStyle(/** @type {string} */ address) {
  return new Promise((done) => {
    document.head.append(h("link", { rel: "stylesheet", href: address, onload: done, onerror: done }));
  });
}

export async function render() {
  document.documentElement.lang = "en";
  document.title = "GradWatch";
  adoptFonts();
  await Promise.all([loadStyle(here("./vendor/uplot.css")), loadStyle(here("./style.css"))]);
  const app = createApp(httpSource(here("../")), readLink(), writeLink);
  document.body.replaceChildren(app.element);
  followTheme(app.repaint);
  followLink(app.open);
  await app.look();
  poll(app.look);
}
