// What every dialog that changes something has: what it would do is looked at first, and only then its button is live.

import { dialog } from "../parts/dialog.js";
import { h, put } from "../parts/dom.js";
import { problem } from "../parts/problem.js";

/**
 * Asks before something is done.
 *
 * `look()` asks what it would do and returns elements that say so; until it has, and where it throws, the button is not
 * live. `run(reason)` does it; `done()` is called after that. `above` stands above what it would do. A look that returns
 * null says that it can't be done.
 */
export function ask({ title, label, kind = "primary", above, look, run, done = () => {}, needsReason = false }) {
  const reason = h("input", { type: "text", maxlength: "255", class: "long", required: needsReason, oninput: () => draw() });
  const place = h("div", { class: "foreseen", role: "status" });
  let isSeen = false;
  let turn = 0;
  let setLive = () => {};
  const draw = () => setLive(isSeen && (!needsReason || reason.value.trim() !== ""));

  async function again() {
    const mine = ++turn;
    isSeen = false;
    draw();
    put(place, h("p", { class: "quiet" }, "Looking at what it would do…"));
    let shown;
    let isGood = true;
    try {
      shown = await look();
    } catch (error) {
      [shown, isGood] = [problem(error), false];
    }
    if (mine !== turn) return; // it was changed meanwhile
    isSeen = isGood && shown !== null && !shown.isRefused;
    put(place, shown?.isRefused ?? shown);
    draw();
  }

  /** What it would do is not known any more: it was changed. */
  function unseen(words) {
    turn += 1;
    isSeen = false;
    put(place, words);
    draw();
  }

  const act = { label, kind, gate: (set) => { setLive = set; }, run: async () => { await run(reason.value.trim()); done(); } };
  const close = dialog({ title, body: [above, place, h("label", { class: "reason" }, needsReason ? "Reason" : "Reason, for the history", reason)], actions: [act] });
  return { again, unseen, close };
}

/** A look that says why it can't be done. */
export function refused(...children) {
  return { isRefused: children };
}
