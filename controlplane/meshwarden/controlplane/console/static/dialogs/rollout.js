// Pauses, resumes or aborts a rollout.

import { h } from "../parts/dom.js";
import { ask } from "./ask.js";

const WORDS = {
  PAUSE: ["Pause", "primary", "The present stage stays as it is: it is neither judged nor followed by another one."],
  RESUME: ["Resume", "primary", "The present stage goes on, and is judged by the calls from now on."],
  ABORT: ["Abort", "danger", "No node keeps the change: each gets the policies as they were before it."],
};

/** Opens it; `action` is PAUSE, RESUME or ABORT. */
export function changeRollout({ state, name, action, send, done }) {
  const [label, kind, words] = WORDS[action];
  const { tenant, name: own } = state.rollout.metadata;
  const ref = { kind: "Rollout", tenant, name: own };
  const opened = ask({
    title: `${label} rollout ${name}`,
    label,
    kind,
    look: async () => [h("p", null, words), h("p", { class: "quiet" }, `${state.nodesTaken ?? 0} nodes have the change at present.`)],
    run: (reason) => send("POST", "/v1/rollouts:change", { ref, action, reason }),
    done,
  });
  opened.again();
}
