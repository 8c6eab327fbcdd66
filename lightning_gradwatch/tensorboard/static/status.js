/** How a run is, as a shape; its word stands in the tables and its colour in the style sheet. */

const DISC = "M8 .8a7.2 7.2 0 1 0 0 14.4A7.2 7.2 0 0 0 8 .8z";

/**
 * In a box of 16 x 16.
 * @type {Record<Status, string>}
 */
const SHAPES = {
  sick: "M5 1h6l4 4v6l-4 4H5l-4-4V5zM7 4v5h2V4zM7 10.5v2h2v-2z",
  notice: "M8 1.2 15.5 14.5H.5zM7.2 6v4.4h1.6V6zM7.2 11.4v1.7h1.6v-1.7z",
  unreadable: "M1 1h14v14H1zM4 5.2 6.8 8 4 10.8 5.2 12 8 9.2 10.8 12 12 10.8 9.2 8 12 5.2 10.8 4 8 6.8 5.2 4z",
  recovered: `${DISC}M8 3v10A5 5 0 0 0 8 3z`,
  healthy: `${DISC}M4.2 8.2 7 11l5-5.2-1.2-1.2L7 8.5 5.4 7z`,
  not_watched: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zM8 3a5 5 0 1 1 0 10A5 5 0 0 1 8 3zM5 7.2h6v1.6H5z",
};

/**
 * The shape of a status; of one that is not known that of `unreadable`.
 * @param {Status} status
 */
export const shapeOf = (status) => SHAPES[status] ?? SHAPES.unreadable;
