// Moments and spans of time, for people. The API has "2026-11-26T20:23:32Z" for the one, "1.5s" for the other.

import { h } from "./dom.js";
import { span } from "./time_words.js";

export { span };

/** Seconds of a span as the API has it; 0 for none. */
export function seconds(span) {
  return span ? Number.parseFloat(span) : 0;
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
