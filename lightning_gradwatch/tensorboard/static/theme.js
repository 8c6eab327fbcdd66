/** Light or dark, as TensorBoard is, and the colours of the drawings. */
import { pack, parse } from "./colours.js";

/** The page that holds TensorBoard; null in a frame from another origin, such as in a notebook. */
function hostDocument() {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null;
  }
}

const prefersDark = () => window.matchMedia("(prefers-color-scheme: dark)");

/**
 * TensorBoard marks its body; where it cannot be seen, the browser's preference decides.
 * @param {Document|null} host
 */
function isDark(host) {
  return host?.querySelector("tb-webapp") ? host.body.classList.contains("dark-mode") : prefersDark().matches;
}

/**
 * Follow the theme; `changed` is called whenever it turns.
 * @param {() => void} changed
 */
export function followTheme(changed) {
  const host = hostDocument();
  const apply = () => {
    const theme = isDark(host) ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    changed();
  };
  if (host?.body) new MutationObserver(apply).observe(host.body, { attributes: true, attributeFilter: ["class"] });
  prefersDark().addEventListener("change", apply);
  apply();
}

/**
 * Use the typeface that TensorBoard brings, from its own files. Its style sheet names them from the root of the server;
 * behind a path prefix they lie below TensorBoard's own page.
 */
export function adoptFonts() {
  const host = hostDocument();
  const rules = [...(host?.styleSheets ?? [])].flatMap((sheet) => rulesOf(sheet));
  const faces = rules.filter((rule) => rule.constructor.name === "CSSFontFaceRule" && rule.cssText.includes("Roboto"));
  if (!host || !faces.length) return;
  const style = document.createElement("style");
  const absolute = (/** @type {string} */ _, /** @type {string} */ address) =>
    `url("${new URL(address.replace(/^\//, "./"), host.baseURI).href}")`;
  style.textContent = faces.map(({ cssText }) => cssText.replace(/url\("?([^")]+)"?\)/g, absolute)).join("\n");
  document.head.append(style);
}

/** @param {CSSStyleSheet} sheet */
function rulesOf(sheet) {
  try {
    return [...sheet.cssRules];
  } catch {
    return [];
  }
}

/**
 * The colours of the theme for drawing on canvases.
 * @returns {Palette}
 */
export function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const get = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
  /** @type {(name: string) => Pair} */
  const pair = (name) => [pack(parse(get(name))), pack(parse(get(`${name}-mark`)))];
  return {
    ink: get("ink"),
    muted: get("muted"),
    line: get("line"),
    grid: get("grid"),
    surface: get("surface"),
    accent: get("accent"),
    alert: get("alert"),
    notice: get("notice"),
    onAlert: get("on-alert"),
    onNotice: get("on-notice"),
    overlays: [1, 2, 3, 4].map((i) => get(`overlay-${i}`)),
    nonfinite: pair("nonfinite"),
    zero: pair("zero"),
    missing: pair("missing"),
    neutral: parse(get("neutral")),
    density: [parse(get("raised")), parse(get("density")), parse(get("dense"))],
  };
}
