/** From values to colours: perceptually even, readable for colour-blind people, with patterns for what is no number. */
import { viridis } from "./tables.js";

/** Blue for less, orange for more, which all common kinds of colour blindness tell apart. */
const LESS = [[17, 66, 138], [88, 142, 206]];
const MORE = [[222, 140, 58], [148, 62, 0]];

/** Cells that are no position on the scale. */
export const MISSING = -1;
export const ZERO = -2;
export const NONFINITE = -3;

/** A colour for ImageData on a little-endian machine. */
export const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** `#rrggbb` as three numbers. */
export const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16));

/** The colour at `position` in [0, 1] between even `stops`, as three bytes. */
export function between(stops, position) {
  const place = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const share = place - index;
  return stops[index].map((channel, i) => Math.round(channel + share * (stops[index + 1][i] - channel)));
}

/** The stops of a map: viridis, or one that runs through a neutral `middle`. */
export const stopsOf = (isDiverging, middle) => (isDiverging ? [...LESS, middle, ...MORE] : viridis());

/** 256 packed colours of a map. */
export function lookup(stops) {
  return Uint32Array.from({ length: 256 }, (_, i) => pack(between(stops, i / 255)));
}

/** A colour for CSS. */
export const css = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;
