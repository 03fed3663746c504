// Rolls back: first what each resource would be again, and what that does to whoever calls.

import { h } from "../parts/dom.js";
import { problem } from "../parts/problem.js";
import { nameOf } from "./apply.js";
import { ask, refused } from "./ask.js";
import { diff } from "./diff.js";
import { foresight } from "./foresight.js";

/**
 * Opens it, to bring back what was as of `revision`: of all resources that one may see, or of those that `refs` names.
 *
 * What is sent is held against the revision that was looked at: whoever changes something meanwhile has it refused.
 */
export function rollBack({ revision, refs = [], title, send, done }) {
  const path = `/v1/revisions/${encodeURIComponent(revision)}:rollback`;
  let seen = 0;

  async function look() {
    const plan = await send("POST", path, { dryRun: true, resources: refs });
    seen = plan.revision ?? "0";
    const changes = plan.changes ?? [];
    if (plan.faults?.length) return refused(problem({ title: "It would be refused", faults: plan.faults }), changes.map(changed));
    if (!changes.length) return refused(h("p", { class: "quiet" }, `All of it is as it was at revision ${revision}.`));
    const resources = changes.flatMap((change) => (change.after ? [change.after] : []));
    const deletions = changes.flatMap((change) => (change.after ? [] : [change.ref]));
    const foreseen = foresight(await send("POST", "/v1/resources:preview", { resources, deletions }));
    return [
      h("p", null, `${changes.length} ${changes.length === 1 ? "resource is" : "resources are"} brought back to what ${changes.length === 1 ? "it was" : "they were"} as of revision ${revision}.`),
      changes.map(changed),
      foreseen,
    ];
  }

  const opened = ask({
    title: title ?? `Roll back to revision ${revision}`,
    label: "Roll back",
    kind: "danger",
    look,
    run: (reason) => send("POST", path, { resources: refs, reason, asOf: seen }),
    done,
  });
  opened.again();
}

function changed(change) {
  return diff(`${(change.action ?? "").toLowerCase()} ${nameOf(change.ref)}`, change.before, change.after);
}
