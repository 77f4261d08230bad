// Looks again every few seconds, while the view and the page are shown and its box is ticked.

import { checkbox } from "./forms.js";

const SECONDS = 5;

/** Returns the box that turns it off. A look that fails is left out: the next one may do. */
export function poll(signal, look) {
  const { root, input } = checkbox(`Update every ${SECONDS} seconds`, { checked: true });
  let looking = false;
  const timer = setInterval(async () => {
    if (!input.checked || document.hidden || looking) return;
    looking = true;
    try {
      await look();
    } catch {
      // A refused key has signed out by now; what is shown stays.
    } finally {
      looking = false;
    }
  }, SECONDS * 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
  return root;
}
