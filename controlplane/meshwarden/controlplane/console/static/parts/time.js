// Moments and spans of time, for people. The API has "2026-11-26T20:23:32Z" for the one, "1.5s" for the other.

import { h } from "./dom.js";

const UNITS = [
  ["d", 86400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** Seconds of a span as the API has it; 0 for none. */
export function seconds(span) {
  return span ? Number.parseFloat(span) : 0;
}

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

/** How long ago, "3 min ago", or until when, "in 2 h". */
export function age(moment, now = Date.now()) {
  const gone = (now - Date.parse(moment)) / 1000;
  if (Number.isNaN(gone)) return "";
  if (Math.abs(gone) < 1) return "now";
  return gone > 0 ? `${span(Math.floor(gone) || 1)} ago` : `in ${span(-gone)}`;
}

/** A moment as local time, "2026-11-26 20:23:32". */
export function clock(moment) {
  const at = new Date(moment);
  if (Number.isNaN(at.getTime())) return "";
  const two = (number) => String(number).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** An element that says how old a moment is, and goes on saying it; its title has the moment. */
export function ago(moment) {
  if (!moment) return h("span", { class: "quiet" }, "–");
  const element = h("time", { datetime: moment, title: clock(moment) }, age(moment));
  shown.add(new WeakRef(element));
  return element;
}

const shown = new Set();

setInterval(() => {
  for (const reference of shown) {
    const element = reference.deref();
    if (!element) {
      shown.delete(reference);
    } else if (element.isConnected) {
      element.textContent = age(element.dateTime);
    }
  }
}, 1000);
