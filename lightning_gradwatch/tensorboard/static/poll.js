/** Look for news every few seconds, while somebody can see them. */

const EVERY_SECONDS = 5;

/** Whether the tab can be seen: TensorBoard hides the frames of the other tabs. */
const isSeen = () => !document.hidden && document.documentElement.clientWidth > 0;

/**
 * Call `look` every five seconds, and as soon as the page is seen again; never twice at once.
 * @param {() => Promise<void>} look
 */
export function poll(look) {
  let isLooking = false;
  const turn = async () => {
    if (isLooking || !isSeen()) return;
    isLooking = true;
    await look();
    isLooking = false;
  };
  setInterval(turn, EVERY_SECONDS * 1000);
  document.addEventListener("visibilitychange", turn);
}
