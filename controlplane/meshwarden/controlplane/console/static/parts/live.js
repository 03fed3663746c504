// What a page goes on asking for while it is shown.

import { h, put } from "./dom.js";
import { problem } from "./problem.js";

/**
 * Asks now and every so many milliseconds, one question at a time, and not while the page is in the background.
 *
 * `load` asks and shows what it hears. What it throws stands in `fault` until it works again, beside what was heard before:
 * a control plane that starts anew is away for a moment. What is refused (403) is not asked for again. Returns `{ fault, now, stop }`; `now` asks at once, at most once a
 * second however often it is called.
 */
export function live(load, everyMs) {
  const fault = h("div", { class: "fault", role: "status" });
  let timer = 0;
  let last = -Infinity;
  let isAsking = false;
  let isWanted = false;
  let isOver = false;

  async function ask() {
    clearTimeout(timer);
    if (isOver) return;
    if (isAsking) {
      isWanted = true;
      return;
    }
    if (document.hidden) {
      timer = setTimeout(ask, everyMs);
      return;
    }
    isAsking = true;
    last = performance.now();
    try {
      await load();
      put(fault);
    } catch (error) {
      const isRefused = error.status === 403; // which no asking changes
      const next = isRefused ? "It is not asked for again." : "What is shown is as it was; it is asked for again.";
      if (!isOver) put(fault, problem(error), h("p", { class: "quiet" }, next));
      if (isRefused) stop();
    }
    isAsking = false;
    const soon = isWanted ? 1000 : everyMs;
    isWanted = false;
    if (!isOver) timer = setTimeout(ask, soon);
  }

  function now() {
    clearTimeout(timer);
    timer = setTimeout(ask, Math.max(0, last + 1000 - performance.now()));
  }

  function stop() {
    isOver = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  }

  const seen = () => document.hidden || now();
  document.addEventListener("visibilitychange", seen);
  ask();
  return {
    fault,
    now,
    stop,
  };
}

/** What is asked for, or null where whoever asks may not be told of it: the page then has no such part. */
export async function ifAllowed(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error.status === 403) return null;
    throw error;
  }
}

/** All pages of a list, of `most` things at most: what `field` of each answer has. */
export async function all(get, path, query, field, most = 5000) {
  const found = [];
  let pageToken = "";
  do {
    const answer = await get(path, { ...query, pageToken });
    found.push(...(answer[field] ?? []));
    pageToken = answer.nextPageToken;
  } while (pageToken && found.length < most);
  return found;
}
