/** The binary frames of the server: a JSON header, then one column of values after the other. */

/**
 * @param {ArrayBuffer} buffer
 * @returns {any} The header, with `columns`, `rows`, `lastSteps` and `values` (Float32Array or Uint8Array).
 */
export function decodeFrame(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const { last_steps: lastSteps, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const Values = header.dtype === "uint8" ? Uint8Array : Float32Array;
  const [columns, rows] = header.shape;
  return { ...header, lastSteps, columns, rows, values: new Values(buffer, 4 + size, columns * rows) };
}
