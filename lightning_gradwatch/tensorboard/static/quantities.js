/** What the heatmap can show. */

/** `scale`: log (decades), fraction (0 to 1) or linear (from 0). `missing`: what -1 stands for. */
export const QUANTITIES = {
  grad_norm: {
    label: "Gradient norm",
    scale: "log",
    missing: "no gradient",
    hint: "L2 norm of the gradient of a layer's weights, unscaled and before clipping",
  },
  output_grad_norm: {
    label: "Gradient at layer output",
    scale: "log",
    missing: "not observed",
    hint: "L2 norm of the gradient of the loss by a layer's output",
  },
  update_ratio: {
    label: "Update / weight",
    scale: "log",
    missing: "not observed",
    hint: "Size of the optimizer's update relative to the weights; about 1e-3 is usual",
  },
  weight_norm: {
    label: "Weight norm",
    scale: "log",
    missing: "not observed",
    hint: "L2 norm of a layer's weights",
  },
  zero_fraction: {
    label: "Zero gradients",
    scale: "fraction",
    missing: "not observed",
    hint: "Share of gradient elements that are exactly zero",
  },
  nonfinite_fraction: {
    label: "NaN and Inf gradients",
    scale: "fraction",
    missing: "not observed",
    hint: "Share of gradient elements that are NaN or infinite",
  },
  clipped_fraction: {
    label: "Clipped steps",
    scale: "fraction",
    missing: "not clipped here",
    hint: "Share of steps in which this layer's gradient was clipped",
  },
  memory_horizon: {
    label: "Memory horizon",
    scale: "linear",
    unit: "steps",
    missing: "not recurrent",
    hint: "Time steps back over which the gradient of a recurrent layer survives",
  },
};

/** The quantities of a run that can be shown, in the order above. */
export function shown(quantities) {
  return Object.keys(QUANTITIES).filter((name) => quantities.includes(name));
}
