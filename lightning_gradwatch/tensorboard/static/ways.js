/** How gradient norms are shown, and which layers are. */

/**
 * What the server must know to let layers share rows.
 * @param {State} state
 * @returns {Pick<Query, "norm" | "hide">}
 */
export const layoutOf = ({ norm, hide }) => ({ ...(norm ? { norm } : {}), ...(hide ? { hide: 1 } : {}) });

/**
 * How a quantity can be shown, in both runs where two are compared, and how it is; "" where there is but one way.
 * @param {Version} version
 * @param {string} quantity
 * @param {Partner|null} partner
 * @param {string|null} wanted
 */
export function waysOf({ norms: all }, quantity, partner, wanted) {
  const own = all[quantity] ?? [];
  const norms = partner ? own.filter((norm) => partner.norms[quantity]?.includes(norm)) : own;
  return { norms, norm: norms.find((one) => one === wanted) ?? norms[0] ?? "" };
}
