// Colours of the heat map. Cividis reads the same with every kind of colour vision, and its lightness
// alone orders it; purple and orange differ for all of them too. Each colour brings a text colour of
// contrast 4.5 or more, so both work on a light and on a dark page.

const CIVIDIS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
const DIVERGING = ["#5e3c99", "#b2abd2", "#f7f7f7", "#fdb863", "#b35806"];

/** The colours of a share from 0 to 1 of the scale's end. */
export function sequential(share) {
  return between(CIVIDIS, share);
}

/** The colours of a difference from -1 to 1 of the scale's ends; 0 is nearly white. */
export function diverging(share) {
  return between(DIVERGING, (share + 1) / 2);
}

function between(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[index]), channels(stops[index + 1])];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * (place - index)));
  // At this luminance black and white have the same contrast, which is 4.58.
  return { background: `rgb(${mixed.join(" ")})`, text: luminance(mixed) > 0.179 ? "#000" : "#fff" };
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** WCAG's relative luminance. */
function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function paint(node, { background, text }) {
  node.style.background = background;
  node.style.color = text;
}
