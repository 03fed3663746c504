// Spans of time in words, for pages and workers alike.

const UNITS = [
  ["d", 86400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** A span of seconds in at most two units, "3 min", "1 d 4 h"; of less than ten seconds as precisely as it matters. */
export function span(given) {
  const size = Math.abs(given);
  if (!size) return "0 s";
  if (size < 0.001) return `${(given * 1e6).toFixed(0)} µs`;
  if (size < 1) return `${(given * 1000).toFixed(size < 0.01 ? 1 : 0)} ms`;
  if (size < 10) return `${given.toFixed(1)} s`;
  const at = UNITS.findIndex(([, worth]) => size >= worth);
  const [unit, worth] = UNITS[at];
  const first = `${Math.floor(size / worth)} ${unit}`;
  const [smaller, less] = UNITS[at + 1] ?? ["", 0];
  const rest = less ? Math.floor((size % worth) / less) : 0;
  return rest && at < 2 ? `${first} ${rest} ${smaller}` : first;
}
