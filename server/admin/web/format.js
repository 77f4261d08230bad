// Numbers, times and digests as text.

const DIGITS = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export function number(value) {
  return DIGITS.format(value);
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function seconds(value) {
  if (value < 0.001) return "under 1 ms";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

export function count(amount, one, many = `${one}s`) {
  return `${number(amount)} ${amount === 1 ? one : many}`;
}

/** The beginning of a digest, enough to tell adapters apart. */
export function short(digest) {
  return digest.slice(0, 12);
}

/** A moment of the API in the reader's own time zone. */
export function moment(iso) {
  return iso ? new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }) : "–";
}

/** The end of a source, which is what tells it from others. */
export function sourceName(source) {
  if (source.includes("://")) return source;
  return source.split("/").filter(Boolean).slice(-1)[0] ?? source;
}
