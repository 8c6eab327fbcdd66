/** Zoomable lines, by uPlot. */
import { formatNumber } from "./format.js";
import { font } from "./labels.js";
import uPlot from "./vendor/uplot.js";

/**
 * Where and how a line is drawn.
 * @typedef {Object} LineView
 * @property {number} width Of the plot.
 * @property {number} height
 * @property {number} gutter To its left.
 * @property {Interval} domain
 * @property {Palette} palette
 * @property {string} label
 * @property {Interval|null} [range] Of the values.
 * @property {boolean} [isLogarithmic] Whether they are shown as orders of magnitude.
 * @property {boolean} [showSteps]
 * @property {(value: number) => string} [format]
 * @property {(steps: Interval) => void} [onZoom]
 * @property {() => void} [onReset]
 */

/**
 * NaN and Inf become gaps, with a mark at the top edge.
 * @param {uPlot} plot
 * @param {number[]} values
 * @param {string} colour
 */
function drawGaps(plot, values, colour) {
  const { ctx: context, bbox } = plot;
  const size = 4 * devicePixelRatio;
  context.fillStyle = colour;
  values.forEach((value, i) => {
    if (Number.isFinite(value)) return;
    const x = plot.valToPos(plot.data[0][i], "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    context.beginPath();
    context.moveTo(x - size, bbox.top);
    context.lineTo(x + size, bbox.top);
    context.lineTo(x, bbox.top + 1.6 * size);
    context.fill();
  });
}

/**
 * What is drawn: the values of a line, and between which they lie where a point stands for several steps.
 * @typedef {{x: number[], y: number[], lows?: number[], highs?: number[], limits?: number[]}} Points
 */

/** @param {Points} points */
const hasBand = ({ lows, highs }) => Boolean(lows && highs && lows.some((low, i) => low < highs[i]));

/**
 * Two series, the lowest and the highest values, with a band between them behind the line.
 * @param {Palette} palette
 */
function bandOf(palette) {
  const edge = { points: { show: false } };
  return { series: [edge, edge], bands: [{ series: [3, 2], fill: `${palette.accent}40` }] };
}

/**
 * Where a logarithmic axis has its marks: at most at four powers of ten.
 * @param {uPlot} _
 * @param {number} __
 * @param {number} low
 * @param {number} high
 */
function powersOfTen(_, __, low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const step = Math.max(Math.ceil((last - first) / 3), 1);
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => 10 ** (first + i * step));
}

/** An axis of orders of magnitude; uPlot would leave some of the marks out. */
const logarithmic = { splits: powersOfTen, filter: (/** @type {uPlot} */ _, /** @type {number[]} */ splits) => splits };

/**
 * A limit on the line: dashed, and what is above it filled.
 * @param {Palette} palette
 * @param {number} place Of its series.
 */
const limitOf = (palette, place) => ({
  series: [{ stroke: palette.alert, width: 1.5, dash: [5, 4], points: { show: false } }],
  bands: [{ series: /** @type {[number, number]} */ ([1, place]), fill: `${palette.alert}59` }],
});

/**
 * @param {LineView & {format: (value: number) => string}} view
 * @param {Points} points
 */
function options(view, points) {
  const { width, height, gutter, domain, palette, label, onZoom, showSteps, range, isLogarithmic, format } = view;
  const values = points.y;
  const none = { series: [], bands: [] };
  const { series, bands } = hasBand(points) ? bandOf(palette) : none;
  const limit = points.limits ? limitOf(palette, series.length + 2) : none;
  const y = isLogarithmic ? { distr: /** @type {3} */ (3) } : range ? { range: () => range } : {};
  const grid = { stroke: palette.grid, width: 1 };
  const axis = { font: font(), stroke: palette.muted, grid, ticks: { show: false } };
  const labels = (/** @type {uPlot} */ _, /** @type {number[]} */ ticks) => ticks.map(format);
  return {
    width: width + gutter,
    height,
    padding: [6, 0, showSteps ? 0 : 6, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { setScale: false, x: Boolean(onZoom), y: false } },
    scales: { x: { time: false, range: () => domain }, y },
    axes: [
      showSteps ? { ...axis, size: 24, grid: { show: false } } : { show: false },
      { ...axis, size: gutter, gap: 14, space: 24, values: labels, ...(isLogarithmic ? logarithmic : {}) },
    ],
    series: [
      {},
      { label, stroke: palette.accent, width: 1.5, points: { show: values.length === 1 } },
      ...series,
      ...limit.series,
    ],
    bands: [...bands, ...limit.bands],
    hooks: {
      draw: [(/** @type {uPlot} */ plot) => drawGaps(plot, values, palette.alert)],
      setSelect: [
        (/** @type {uPlot} */ plot) => {
          const { left, width: selected } = plot.select;
          if (selected < 4) return;
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          onZoom?.([plot.posToVal(left, "x"), plot.posToVal(left + selected, "x")]);
        },
      ],
    },
  };
}

/**
 * Draw one line into an element, in the place of what was there.
 * @param {HTMLElement} element
 * @param {Points} points
 * @param {LineView} view
 * @returns The plot, to be destroyed before the next one.
 */
export function drawLine(element, points, view) {
  const band = hasBand(points) ? [points.lows ?? [], points.highs ?? []] : [];
  const drawn = [points.y, ...band, ...(points.limits ? [points.limits] : [])];
  const isShown = (/** @type {number} */ value) => Number.isFinite(value) && (!view.isLogarithmic || value > 0);
  const finite = drawn.map((values) => values.map((value) => (isShown(value) ? value : null)));
  const format = view.format ?? ((/** @type {number} */ value) => formatNumber(value, 3));
  const plot = new uPlot(options({ ...view, format }, points), [points.x, ...finite], element);
  plot.over.addEventListener("dblclick", () => view.onReset?.());
  return plot;
}
