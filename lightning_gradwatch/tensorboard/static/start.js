/** The application in TensorBoard's frame: its link, its theme, its news. */
import { createApp } from "./app.js";
import { followLink, readLink, writeLink } from "./link.js";
import { poll } from "./poll.js";
import { adoptFonts, followTheme } from "./theme.js";

/** @param {Source} source */
export async function start(source) {
  adoptFonts();
  const app = createApp(source, readLink(), writeLink);
  document.body.replaceChildren(app.element);
  followTheme(app.repaint);
  followLink(app.open);
  await app.look();
  poll(app.look);
}
