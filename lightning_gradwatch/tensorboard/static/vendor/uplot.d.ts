/** What the tab uses of uPlot. */
export default class uPlot {
  constructor(options: object, data: (number | null)[][], target: HTMLElement);
  ctx: CanvasRenderingContext2D;
  bbox: { left: number; top: number; width: number; height: number };
  data: number[][];
  over: HTMLElement;
  root: HTMLElement;
  select: { left: number; top: number; width: number; height: number };
  valToPos(value: number, scale: string, isCanvas?: boolean): number;
  posToVal(position: number, scale: string): number;
  setSelect(select: { left: number; top: number; width: number; height: number }, isFired: boolean): void;
  destroy(): void;
}
