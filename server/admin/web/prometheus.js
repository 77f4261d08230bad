// Prometheus' text format: samples by the name of their series.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** `Map` of names to `[{labels, value}]`, for the names that `wanted` has. */
export function parseMetrics(text, wanted) {
  const found = new Map(wanted.map((name) => [name, []]));
  for (const line of text.split("\n")) {
    const match = line[0] === "#" ? null : SAMPLE.exec(line);
    const samples = match && found.get(match[1]);
    if (!samples) continue;
    const labels = new Map();
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels.set(name, value.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]));
    }
    samples.push({ labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return found;
}

/**
 * The value that a share of what was observed does not exceed, as Prometheus' `histogram_quantile`
 * has it; null where nothing was observed. `buckets` is a `Map` of bounds to cumulative counts.
 */
export function quantile(share, buckets) {
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const total = sorted.length ? sorted[sorted.length - 1][1] : 0;
  if (total === 0) return null;
  const rank = share * total;
  let [low, below] = [0, 0];
  for (const [bound, count] of sorted) {
    if (count >= rank) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (rank - below)) / (count - below || 1);
    }
    [low, below] = [bound, count];
  }
  return low;
}
