/** The entry of a report: the tab, in a page of its own. */
import { createApp } from "../../tensorboard/static/app.js";
import { followLink, readLink, writeLink } from "../../tensorboard/static/link.js";
import { followTheme } from "../../tensorboard/static/theme.js";
import { embeddedSource, unpack } from "./embedded.js";

const data = await unpack(document.getElementById("gradwatch-data")?.textContent ?? "");
// in a frame of a notebook there is no address of its own to keep a view in
const isInline = location.protocol === "about:";
const app = isInline
  ? createApp(embeddedSource(data), {}, () => {})
  : createApp(embeddedSource(data), readLink(), writeLink);
document.body.replaceChildren(app.element);
followTheme(app.repaint);
if (!isInline) followLink(app.open);
await app.look();
const written = Math.max(...data.runs.map(({ row }) => row.wall_time));
const live = app.element.querySelector(".live");
if (live) live.textContent = `as of ${new Date(1000 * written).toLocaleString("en-GB")}`;
