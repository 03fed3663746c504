// Applies resources: first what would change of them, and what that does to whoever calls.

import { h } from "../parts/dom.js";
import { problem } from "../parts/problem.js";
import { ask, refused } from "./ask.js";
import { diff, lines } from "./diff.js";
import { foresight } from "./foresight.js";

const PAUSE_MS = 600;

/** Opens it; `resource` is what is there, or nothing for a new one. What is applied is what was looked at. */
export function applyResource({ resource, get, send, done }) {
  const text = h("textarea", { "aria-label": "Manifest", spellcheck: "false", oninput: changed }, resource ? lines(resource, true).join("\n") : TEMPLATE);
  let timer = 0;
  let resources = [];

  async function look() {
    const read = await send("POST", "/v1/resources:parse", { manifest: text.value });
    if (read.faults?.length) return refused(problem({ title: "This is no manifest", faults: read.faults }));
    resources = read.resources ?? [];
    if (!resources.length) return refused(h("p", { class: "quiet" }, "It says nothing."));
    const plan = await send("POST", "/v1/resources:apply", { resources, dryRun: true });
    if (plan.faults?.length) return refused(problem({ title: "It would be refused", faults: plan.faults }));
    const changes = (plan.changes ?? []).filter((change) => change.action !== "UNCHANGED");
    if (!changes.length) return refused(h("p", { class: "quiet" }, "Nothing would change."));
    const [seen, before] = await Promise.all([send("POST", "/v1/resources:preview", { resources }), Promise.all(changes.map((change) => there(get, change.ref)))]);
    const after = new Map(resources.map((one) => [nameOf(refOf(one)), one]));
    return [changes.map((change, at) => diff(`${change.action.toLowerCase()} ${nameOf(change.ref)}`, before[at], after.get(nameOf(change.ref)))), foresight(seen)];
  }

  function changed() {
    clearTimeout(timer);
    opened.unseen(h("p", { class: "quiet" }, "…"));
    timer = setTimeout(opened.again, PAUSE_MS);
  }

  const opened = ask({
    title: resource ? `Change ${nameOf(refOf(resource))}` : "Apply resources",
    label: "Apply",
    above: [h("p", { class: "quiet" }, "As `meshwarden apply -f` takes it: YAML or JSON, one document a resource."), text],
    look,
    run: (reason) => send("POST", "/v1/resources:apply", { resources, reason }),
    done,
  });
  opened.again();
}

/** Deletes a resource; nothing is deleted that something uses, which the look is told. */
export function deleteResource({ resource, send, done }) {
  const ref = refOf(resource);
  const opened = ask({
    title: `Delete ${nameOf(ref)}`,
    label: "Delete",
    kind: "danger",
    look: async () => [diff(nameOf(ref), resource, null), foresight(await send("POST", "/v1/resources:preview", { deletions: [ref] }))],
    run: (reason) => send("POST", "/v1/resources:delete", { refs: [ref], reason }),
    done,
  });
  opened.again();
}

const TEMPLATE = "kind: Service\nmetadata: {tenant: , name: }\nspec: {protocol: GRPC}\n";

export function refOf(resource) {
  const { tenant, name } = resource?.metadata ?? {};
  const kind = resource?.kind;
  return { kind, tenant: tenant || (kind === "Tenant" ? name : undefined), name };
}

export function nameOf(ref) {
  return ref.kind === "Tenant" ? `Tenant ${ref.name}` : `${ref.kind} ${ref.tenant}/${ref.name}`;
}

async function there(get, ref) {
  try {
    return await get(`/v1/resources/${[ref.kind, ref.tenant, ref.name].map(encodeURIComponent).join("/")}`);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
