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
 * @property {Interval} [range] Of the values.
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
 * @typedef {{x: number[], y: number[], lows?: number[], highs?: number[]}} Points
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
 * @param {LineView & {format: (value: number) => string}} view
 * @param {Points} points
 */
function options({ width, height, gutter, domain, palette, label, onZoom, showSteps, range, format }, points) {
  const values = points.y;
  const { series, bands } = hasBand(points) ? bandOf(palette) : { series: [], bands: [] };
  const grid = { stroke: palette.grid, width: 1 };
  const axis = { font: font(), stroke: palette.muted, grid, ticks: { show: false } };
  const labels = (/** @type {uPlot} */ _, /** @type {number[]} */ ticks) => ticks.map(format);
  return {
    width: width + gutter,
    height,
    padding: [6, 0, showSteps ? 0 : 6, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { setScale: false, x: Boolean(onZoom), y: false } },
    scales: { x: { time: false, range: () => domain }, y: range ? { range: () => range } : {} },
    axes: [
      showSteps ? { ...axis, size: 24, grid: { show: false } } : { show: false },
      { ...axis, size: gutter, gap: 14, space: 24, values: labels },
    ],
    series: [{}, { label, stroke: palette.accent, width: 1.5, points: { show: values.length === 1 } }, ...series],
    bands,
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
  const drawn = [points.y, ...(hasBand(points) ? [points.lows ?? [], points.highs ?? []] : [])];
  const finite = drawn.map((values) => values.map((value) => (Number.isFinite(value) ? value : null)));
  const format = view.format ?? ((/** @type {number} */ value) => formatNumber(value, 3));
  const plot = new uPlot(options({ ...view, format }, points), [points.x, ...finite], element);
  plot.over.addEventListener("dblclick", () => view.onReset?.());
  return plot;
}
