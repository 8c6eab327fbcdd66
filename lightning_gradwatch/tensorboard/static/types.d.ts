/** The shapes that the scripts pass around. Nothing here runs: it is what their comments refer to. */

type Rgb = [number, number, number];
/** Two ends: of steps, of values, or of bins. */
type Interval = [number, number];
type Sort = "sickest" | "newest" | "name";
type Status = "sick" | "notice" | "unreadable" | "recovered" | "healthy" | "not_watched";

interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/* What the server says; see `answers.py` and `tables.py`. */

interface Tables {
  quantities: Record<string, Quantity>;
  /** Ways to show gradient norms, the default first. */
  norms: Record<string, Norm>;
  particular: { default: string; horizon: string; histogram: string };
  kinds: Record<string, { title: string; label: string; shown_by: string }>;
  statuses: Record<string, string>;
  cells: Record<string, string>;
  /** `limits` names the number that is drawn with a limit; "" for a line of its own. */
  lines: { name: string; label: string; range: Interval | null; limits: string }[];
  least_decades: number;
  viridis: Rgb[];
}

/** A way to show gradient norms; `after` stands behind the label of the quantity. */
interface Norm {
  name: string;
  label: string;
  after: string;
  hint: string;
}

interface Quantity {
  name: string;
  label: string;
  scale: "log" | "fraction" | "linear";
  missing: string;
  hint: string;
  unit: string;
}

/** One run in the list of runs. */
interface RunRow {
  run: string;
  status: Status;
  headline: string;
  num_open: number;
  last_step: number | null;
  wall_time: number;
  stamp: string;
  /** Whether it goes on, in a word for us and in a few for people. */
  state: "live" | "ended" | "crashed" | "silent" | "unknown";
  state_text: string;
  /** What stands for the layers of each optimizer: the same for the same layers. */
  layers: Record<string, string>;
}

/** What there is of one run. */
interface RunDocument {
  run: string;
  stamp: string;
  status: Status;
  headline: string;
  alerts: Alert[];
  num_dropped: number;
  /** What of its files cannot be read. */
  damage: { file: string; after_step: number | null; unread_bytes: number | null; message: string }[];
  /** What it went on without. */
  left_out: { kind: string; name: string; step: number; message: string }[];
  optimizers: { name: string; versions: Version[] }[];
  scalars: string[];
  loss_tag: string | null;
  view: {
    /** The run's own quantities in words. */
    quantities: Record<string, Quantity>;
    /** Tags of the lines, by optimizer and by the name of the line. */
    lines: Record<string, Record<string, string>>;
    /** Tags of the scalars that can take the place of the loss. */
    choices: string[];
  };
}

/** A list of layers, and what is known of them. */
interface Version {
  version: number;
  layers: string[];
  /** How layers share rows where there are many; see `folding.py`. */
  rows: Fold[];
  /** Ways to show a quantity, by its name, the default first; none for most. */
  norms: Record<string, string[]>;
  /** Layers that can be hidden: norm layers, and biases by themselves. */
  num_vectors: number;
  first_step: number;
  last_step: number;
  /** Steps that were observed. */
  num_samples: number;
  quantities: string[];
  sequences: string[];
}

/** A layer by its place; or layers that share a row, which opens into its parts, or else into its layers. */
type Fold = number | { path: string; layers: string; parts?: Fold[] };

interface Alert {
  kind: string;
  level: "notice" | "alert";
  /** 0 for the one that matters most. */
  rank: number;
  step: number;
  until_step: number | null;
  layer: string;
  optimizer: string;
  message: string;
  /** The headline of a rule of the user. */
  title?: string;
  summary?: string;
  evidence?: string;
  remedies?: string[];
  tried?: Trials;
  where?: Lost;
  born?: Born;
}

/** Where NaN or infinity was born: `at` is the place among the stages of a step. */
interface Born {
  title: string;
  stages: string[];
  at: number;
  module: string;
  file: string;
  /** 0 where it is not known. */
  line: number;
  code: string;
  samples: string;
}

/** Where on its way back to a layer a gradient is lost, in orders of magnitude; the loss end first. */
interface Lost {
  title: string;
  /** The largest first. */
  parts: { group: string; label: string; lost: number }[];
  stages: { layer: string; lost: Record<string, number> }[];
}

interface Trials {
  title: string;
  caption: string;
  /** How far the learning rate is from the edge; older logs do not know. */
  headroom?: string;
  /** Why the rows stand in this order; logs shown by a page of an older version have none. */
  order?: string;
  header: string[];
  rows: string[][];
  recipes: [remedy: string, code: string][];
  not_tried: string[];
}

/** A matrix: `columns` samples of `rows` numbers. */
interface Frame<Values extends Float32Array | Uint8Array = Float32Array> {
  dtype: string;
  shape: Interval;
  steps: number[];
  lastSteps: number[];
  counts?: number[];
  /** What the counts count: of steps every one is on record, samples are single ones among them. */
  counted?: "steps" | "samples";
  /** The smallest positive and the largest finite number of all layers, whatever rows they share; empty for none. */
  extent?: number[];
  columns: number;
  rows: number;
  values: Values;
}

/** The frame of a comparison: `values` are the differences between `here` and `there`. */
interface ComparedFrame extends Frame {
  here: Float32Array;
  there: Float32Array;
}

/** Histograms of log10|g| of one layer. */
interface HistogramFrame extends Frame<Uint8Array> {
  lowest: number;
  bins_per_decade: number;
}

interface Column {
  step: number;
  last_step: number;
  values: number[];
  /** Where layers share rows: of those that are finite and there. */
  lows?: number[];
  medians?: number[];
}

interface ScalarData {
  steps: number[];
  values: number[];
  /** Of a number that is known from every step: the value is the mean of steps up to this one, between these. */
  last_steps?: number[];
  lows?: number[];
  highs?: number[];
}

interface SequenceData {
  step: number;
  steps_back: number[];
  norms: number[];
  horizon: number | null;
}

interface LayerNumbers {
  step: number;
  last_step: number;
  numbers: Record<string, number>;
  grad_norm_range: number[] | null;
  /** The gradient norm per element; null where the number of elements is not known. */
  grad_norm_rms: number | null;
}

/** What is asked for; each question has its own part of this. */
interface Query {
  run: string;
  optimizer?: string;
  version?: number;
  quantity?: string;
  layer?: string;
  tag?: string;
  step?: number;
  from?: number;
  to?: number;
  columns?: number;
  /** Which layers share a row, as by `rowsText`; or at most how many rows there may be. */
  rows?: string;
  most_rows?: number;
  points?: number;
  statistic?: "low" | "mean" | "high";
  /** How gradient norms are shown, and whether norm layers and biases are left out. */
  norm?: string;
  hide?: 0 | 1;
}

/** Where the data comes from. */
interface Source {
  tables(): Promise<Tables>;
  runs(): Promise<RunRow[]>;
  run(query: Query): Promise<RunDocument>;
  heatmap(query: Query): Promise<Frame>;
  column(query: Query): Promise<Column>;
  distribution(query: Query): Promise<HistogramFrame>;
  scalars(query: Query): Promise<ScalarData>;
  sequence(query: Query): Promise<SequenceData>;
  layer(query: Query): Promise<LayerNumbers>;
}

/** A source that remembers its answers as long as the stamp of the run is the same. */
type Question = Exclude<keyof Source, "tables" | "runs">;
type Ask = <Method extends Question>(method: Method, query: Query, stamp: string) => ReturnType<Source[Method]>;

/* What a person has chosen. */

interface State {
  run: string | null;
  optimizer: string | null;
  quantity: string | null;
  /** How gradient norms are shown. */
  norm: string | null;
  /** "vectors": norm layers and biases are hidden. */
  hide: string | null;
  layer: string | null;
  step: number | null;
  zoom: Interval | null;
  /** Groups that somebody has folded, and rows of several layers that somebody has opened; "*" opens all. */
  folded: string[];
  opened: string[];
  compare: string | null;
  loss: string | null;
  /** Of the list of runs: words, verdicts, order, and whether those that TensorBoard hides are listed. */
  find: string | null;
  verdict: Status[];
  sort: Sort | null;
  all: string | null;
}

interface Store {
  get(): State;
  set(patch: Partial<State>): void;
  subscribe(listener: (state: State, changed: (keyof State)[]) => void): void;
}

/* What is drawn. */

/** Neighbouring layers, by their places. */
interface Stretch {
  first: number;
  last: number;
}

/** Layers that share a row: one, or those of a folded group. `first` and `last` are the outermost of them. */
interface Row extends Stretch {
  /** Its place among the rows. */
  index: number;
  layers: number[];
  label: string;
  path: string | null;
  /** What was opened to show it, the outermost first. */
  inside: string[];
}

interface Placed {
  top: number;
  height: number;
}

type PlacedRow = Row & Placed;

interface Group extends Stretch {
  path: string;
  level: number;
}

interface Bracket extends Group, Placed {
  folded: boolean;
  x: number;
}

/** Where each column of a frame begins and ends on the axis of steps. */
interface Spans {
  left: Float64Array;
  right: Float64Array;
}

interface Lane {
  kind: string;
  alerts: Alert[];
}

interface Scale {
  kind: "log" | "fraction" | "linear" | "difference";
  low: number;
  high: number;
  position(value: number): number;
  ticks: [position: number, label: string][];
}

/** Base colour and pattern, packed. */
type Pair = [number, number];

interface Palette {
  ink: string;
  muted: string;
  line: string;
  grid: string;
  surface: string;
  accent: string;
  alert: string;
  notice: string;
  onAlert: string;
  onNotice: string;
  overlays: string[];
  nonfinite: Pair;
  zero: Pair;
  missing: Pair;
  neutral: Rgb;
  density: Rgb[];
}

/** The layers of another run, for overlays and comparison. */
interface Partner {
  run: string;
  stamp: string;
  optimizer: string;
  version: number;
  layers: string[];
  quantities: string[];
  norms: Record<string, string[]>;
}

/** The profile of another run: places on the scale, below 0 or above 1 off it, NaN for none. */
interface Overlay {
  name: string;
  cells: number[];
  colour: string;
  dash: number[];
}

/** What a heatmap needs to be drawn. */
interface Picture {
  frame: Frame;
  spans: Spans;
  domain: Interval;
  cells: Float32Array;
  lookup: Uint32Array;
}

/** What is loaded of a run. */
interface View {
  /** Which run and optimizer; the steps are followed as long as it is the same. */
  key: string;
  run: RunDocument;
  rowOfRun: RunRow;
  optimizer: string;
  optimizers: string[];
  version: Version;
  quantity: string;
  quantities: string[];
  /** How the quantity is shown, and how it could be; "" and none for one that has but one way. */
  norm: string;
  norms: string[];
  /** Whether norm layers and biases are hidden, and what else decides which layers share rows. */
  isHiding: boolean;
  layout: string;
  /** All steps, those that are zoomed to, and those that are shown. */
  full: Interval;
  zoom: Interval | null;
  domain: Interval;
  frame: Frame | ComparedFrame;
  overview: Frame | ComparedFrame;
  /** What was asked for the frame. */
  query: Query;
  layers: string[];
  groups: Group[];
  /** How the layers share rows unless somebody folds or opens. */
  plan: Fold[];
  rows: Row[];
  alerts: Alert[];
  /** The run that this one is compared with. */
  compare: string | null;
  scale: Scale;
  cells: Float32Array;
  spans: Spans;
}

/** What is drawn: a view, with the cursor in it and the colours of the theme. */
interface Model extends View {
  palette: Palette;
  stops: Rgb[];
  lookup: Uint32Array;
  layer: string;
  row: number;
  column: number;
  lanes: Lane[];
  isZoomed: boolean;
  isFolded: boolean;
  comparable: string[];
  label: string;
  overlays: Overlay[];
  /** The sample at the cursor, where the heatmap shows merged ones. */
  exact: Profile | null;
  /** The means of the steps that share a column, as `frame.values`. */
  means: Float32Array | null;
}

/** The values of all layers at one step, or at several; as places on the scale. */
interface Profile {
  step: number;
  lastStep: number;
  cells: Float32Array;
  /** Of the layers that share a row. */
  lows?: Float32Array;
  medians?: Float32Array;
}

/** What is known of all runs, what is loaded of the chosen one, and what is drawn of that. */
interface Scene {
  runs: RunRow[];
  others: Partner[];
  view: View | null;
  model: Model | null;
  isLoading: boolean;
}

/** How panels below the heatmap are drawn, so that they share its steps. */
interface Dress {
  width: number;
  gutter: number;
  domain: Interval;
  palette: Palette;
  step: number | null;
}

/** A scalar of the run as a line. */
interface WantedLine {
  key: string;
  label: string;
  /** None if there is no such line. */
  tag?: string;
  /** The run that it is of, if it is another one than that which is shown. */
  of?: RunRow;
  tags?: string[];
  range?: Interval | null;
  limit?: { label: string; tag: string };
}

interface LineData {
  key: string;
  label: string;
  tag: string;
  tags?: string[];
  range?: Interval | null;
  data: ScalarData;
  /** What the line must not exceed, and what that is called. */
  limit?: { label: string; data: ScalarData };
}

/** Everything about the chosen layer. */
interface LayerDetail {
  layer: string;
  step: number;
  lastStep: number;
  numbers: Record<string, number>;
  range: number[] | null;
  rms: number | null;
  frame: HistogramFrame | null;
  sequence: SequenceData | null;
  alerts: Alert[];
}

interface Sizes {
  gutter: number;
  plot: number;
  side: number;
  height: number;
}

/** What a part of the page can ask for. */
interface Actions {
  choose(patch: Partial<State>): void;
  chooseLoss(tag: string): void;
  chooseRun(run: string): void;
  set(patch: Partial<State>): void;
  move(rows: number): void;
  moveColumn(by: number): void;
  toEnd(isLast: boolean): void;
  cycle(by: number): void;
  fold(path: string): void;
  foldHere(): void;
  foldAll(isFolded: boolean): void;
  /** `by` rows of those that fit; 0 for the first. `opened` is what was open before the search. */
  find(text: string, by: number, opened: string[]): void;
  toSickest(): void;
  showAlert(alert: Alert): void;
  zoom(steps: Interval): void;
  wheel(factor: number, step: number): void;
  zoomHere(factor: number): void;
  reset(): void;
}

/** What only the application can do. */
interface Commands extends Actions {
  /** Other runs are seen than before. */
  seen(): void;
  retry(): void;
  png(): void;
  csv(): void;
}

/** What the page adds, since it concerns several of its parts. */
interface PageActions extends Commands {
  hover(step: number | null): void;
  help(): void;
  /** Begin to type the name of a layer. */
  search(): void;
  tooltip: Tooltip;
}

interface Tooltip {
  element: HTMLElement;
  show(pointer: MouseEvent, title: string, lines: string[]): void;
  hide(): void;
}

/** What somebody does with the pointer over a plot of steps. */
interface PointerActions {
  hover?(step: number, y: number, event: PointerEvent): void;
  leave?(): void;
  click?(step: number, y: number): void;
  zoom(steps: Interval): void;
  wheel(factor: number, step: number): void;
  reset(): void;
}

type Page = ReturnType<typeof import("./page.js").createPage>;
type Painter = ReturnType<typeof import("./painter.js").createPainter>;
