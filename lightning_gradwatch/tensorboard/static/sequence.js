/** The past of a recurrent layer: gradient against time steps back, and how far it reaches. */
import { h } from "./dom.js";
import { formatDecade, formatNumber, formatStep } from "./format.js";
import { drawLine } from "./lines.js";
import { particular, quantityOf } from "./tables.js";

const HEIGHT = 140;
/** Behind this share of the sequence there is no room to the right of the horizon for its name. */
const LATE = 0.8;

/** With a mark at the horizon, behind which less than 1 % of the gradient arrives; none where it leaves nothing out. */
export function createSequence() {
  const holder = h("div", { class: "holder", role: "img" });
  const title = h("h3");
  const side = h("p", { class: "sequence-side muted" });
  const element = h("div", { class: "sequence", hidden: true }, title, holder, side);
  /** @type {ReturnType<typeof drawLine>|null} */
  let plot = null;

  /**
   * @param {SequenceData|null} sequence
   * @param {Dress} dress
   */
  function update(sequence, { width, gutter, palette }) {
    plot?.destroy();
    plot = null;
    element.hidden = !sequence?.steps_back.length;
    if (!sequence?.steps_back.length) return;
    const { x, y } = byDistance(sequence);
    const farthest = Math.max(x[x.length - 1], 1);
    const horizon = sequence.horizon !== null && Number.isFinite(sequence.horizon) ? sequence.horizon : null;
    title.textContent = `Gradient against time steps back, at step ${formatStep(sequence.step)}`;
    const { label } = quantityOf(particular().horizon);
    side.textContent = horizon === null ? "" : `${label}: ${formatNumber(horizon, 3)} of ${farthest + 1} time steps`;
    holder.setAttribute("aria-label", `${title.textContent}. ${side.textContent}`);
    plot = drawLine(holder, { x, y }, {
      width, gutter, palette, height: HEIGHT, domain: [0, farthest], showSteps: true,
      label: quantityOf(particular().default).label,
      format: (decade) => (Number.isInteger(decade) ? formatDecade(decade) : ""),
    });
    if (horizon !== null && horizon < farthest) plot.over.append(markOf(horizon, farthest));
  }
  return { element, update };
}

/**
 * Time steps back in rising order, and the decades of the norms.
 * @param {SequenceData} sequence
 */
function byDistance({ steps_back: stepsBack, norms }) {
  const order = stepsBack.map((_, i) => i).sort((a, b) => stepsBack[a] - stepsBack[b]);
  return { x: order.map((i) => stepsBack[i]), y: order.map((i) => Math.log10(norms[i])) };
}

/**
 * @param {number} horizon
 * @param {number} farthest
 */
function markOf(horizon, farthest) {
  const mark = h("div", { class: horizon > LATE * farthest ? "horizon late" : "horizon" });
  mark.style.left = `${(100 * horizon) / farthest}%`;
  return mark;
}
