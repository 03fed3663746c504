// Rolls back: first what each resource would be again, and what that does to whoever calls.

import { h } from "../parts/dom.js";
import { badge, problem } from "../parts/problem.js";
import { nameOf } from "./apply.js";
import { ask, refused } from "./ask.js";
import { diff } from "./diff.js";
import { foresight } from "./foresight.js";

const AT_ONCE = 100; // what a preview takes

/**
 * Opens it, to bring back what was as of `revision`: of all resources that one may see, or of `resources`.
 *
 * What is sent is held against the revision that was looked at: whoever changes something meanwhile has it refused.
 */
export function rollBack({ revision, resources = [], title, send, done }) {
  const path = `/v1/revisions/${encodeURIComponent(revision)}:rollback`;
  let seen = 0;

  async function look() {
    const plan = await send("POST", path, { dryRun: true, resources });
    seen = plan.revision ?? "0";
    const changes = plan.changes ?? [];
    if (plan.faults?.length) return refused(problem({ title: "It would be refused", faults: plan.faults }), changes.map(changed));
    if (!changes.length) return refused(h("p", { class: "quiet" }, `All of it is as it was at revision ${revision}.`));
    const after = changes.flatMap((change) => (change.after ? [change.after] : []));
    const gone = changes.filter((change) => !change.after);
    const foreseen = after.length ? foresight(await send("POST", "/v1/resources:preview", { resources: after.slice(0, AT_ONCE) })) : null;
    return [
      h("p", null, `${changes.length} ${changes.length === 1 ? "resource is" : "resources are"} brought back to what ${changes.length === 1 ? "it was" : "they were"} as of revision ${revision}.`),
      changes.map(changed),
      foreseen,
      gone.length > 0 && h("p", null, badge("warn", `What the deletion of ${gone.map((change) => nameOf(change.ref)).join(", ")} does to calls is not foreseen.`)),
    ];
  }

  const opened = ask({
    title: title ?? `Roll back to revision ${revision}`,
    label: "Roll back",
    kind: "danger",
    look,
    run: (reason) => send("POST", path, { resources, reason, asOf: seen }),
    done,
  });
  opened.again();
}

function changed(change) {
  return diff(`${(change.action ?? "").toLowerCase()} ${nameOf(change.ref)}`, change.before, change.after);
}
