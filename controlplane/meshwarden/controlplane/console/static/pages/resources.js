// What is declared, and how it came to be: resources, and the history of their changes.

import { applyResource, deleteResource, nameOf, refOf } from "../dialogs/apply.js";
import { lines } from "../dialogs/diff.js";
import { rollBack } from "../dialogs/rollback.js";
import { dialog } from "../parts/dialog.js";
import { h, put } from "../parts/dom.js";
import { all, live } from "../parts/live.js";
import { problem } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago } from "../parts/time.js";

const MOST = 5000;
const CHANGES = 50;

export const page = { path: "resources", title: "Resources", key: "e", show };

function show({ may, get, send, parameters }) {
  let seen = -1; // the mesh's revision when it was asked last
  let older = [];
  let next = "0";
  const done = () => asked.now();
  const resources = table({ label: "Resources", id: (row) => nameOf(refOf(row)), columns: resourceColumns(), none: "Nothing is declared. `meshwarden apply -f FILE` declares something." });
  const changes = table({ label: "Changes", id: (row) => row.revision, columns: changeColumns(), sort: 0, descending: true, none: "Nobody has changed anything." });
  const kind = h("select", { onchange: () => asked.now() }, h("option", { value: "" }, "all kinds"), KINDS.map((one) => h("option", { selected: one === parameters.query.kind }, one)));
  const more = h("button", { type: "button", hidden: true, onclick: goOn }, "Older changes");
  const fault = h("div", null);

  const asked = live(async () => {
    const [found, history] = await Promise.all([all(get, "/v1/resources", { kind: kind.value, pageSize: 500 }, "resources", MOST), get("/v1/revisions", { pageSize: CHANGES })]);
    resources.update(found);
    const revisions = history.revisions ?? [];
    const oldest = Number(revisions.at(-1)?.revision ?? 0);
    if (!older.length) next = history.nextBefore ?? "0";
    changes.update([...revisions, ...older.filter((one) => Number(one.revision) < oldest)]);
    more.hidden = next === "0";
  }, 15000);

  async function goOn() {
    try {
      const answer = await get("/v1/revisions", { pageSize: CHANGES, before: next });
      next = answer.nextBefore ?? "0";
      older = [...older, ...(answer.revisions ?? [])];
      put(fault);
      asked.now();
    } catch (error) {
      put(fault, problem(error));
    }
  }

  function resourceColumns() {
    const act = (row) =>
      may("ResourceService.Apply")
        ? [
            h("button", { type: "button", "aria-label": `Change ${nameOf(refOf(row))}`, onclick: () => applyResource({ resource: row, get, send, done }) }, "Change…"),
            " ",
            h("button", { type: "button", "aria-label": `Delete ${nameOf(refOf(row))}`, onclick: () => deleteResource({ resource: row, send, done }) }, "Delete…"),
          ]
        : h("button", { type: "button", class: "plain", "aria-label": `Show ${nameOf(refOf(row))}`, onclick: () => look(row) }, "Show");
    return [
      { title: "Kind", value: (row) => row.kind },
      { title: "Tenant", value: (row) => row.metadata.tenant ?? "" },
      { title: "Name", value: (row) => row.metadata.name },
      { title: "Labels", value: (row) => Object.entries(row.metadata.labels ?? {}).map((pair) => pair.join("=")).join(" "), wide: true },
      { title: "Revision", value: (row) => Number(row.metadata.record?.revision ?? 0), align: "right" },
      { title: "Changed", value: (row) => row.metadata.record?.updateTime ?? "", show: (row) => ago(row.metadata.record?.updateTime) },
      { title: "Actions", value: () => "", show: (row) => h("span", { class: "acts" }, act(row)) },
    ];
  }

  function changeColumns() {
    const refs = (row) => (row.changes ?? []).map((change) => change.ref);
    const columns = [
      { title: "Revision", value: (row) => Number(row.revision), align: "right" },
      { title: "When", value: (row) => row.time ?? "", show: (row) => ago(row.time) },
      { title: "Who", value: (row) => row.by ?? "" },
      { title: "What", value: (row) => (row.changes ?? []).map((change) => `${(change.action ?? "").toLowerCase()} ${nameOf(change.ref)}`).join(", "), wide: true },
      { title: "Why", value: (row) => row.reason ?? "", wide: true },
      { title: "Trace", value: (row) => row.traceId ?? "", show: (row) => row.traceId && h("a", { href: `#traces/${encodeURIComponent(row.traceId)}`, "aria-label": `Trace of revision ${row.revision}` }, "trace") },
    ];
    if (may("RevisionService.Rollback")) {
      const back = (row) => rollBack({ revision: row.revision, send, done });
      const undo = (row) => rollBack({ revision: String(Number(row.revision) - 1), refs: refs(row), title: `Take revision ${row.revision} back`, send, done });
      const buttons = (row) => [
        h("button", { type: "button", "aria-label": `Take back revision ${row.revision}`, onclick: () => undo(row) }, "Take back…"),
        " ",
        h("button", { type: "button", "aria-label": `Back to here, revision ${row.revision}`, onclick: () => back(row) }, "Back to here…"),
      ];
      columns.push({ title: "Actions", value: () => "", show: (row) => h("span", { class: "acts" }, buttons(row)) });
    }
    return columns;
  }

  const bar = h("div", { class: "bar" }, h("label", null, "Show", kind), may("ResourceService.Apply") && h("button", { type: "button", class: "primary", onclick: () => applyResource({ get, send, done }) }, "Apply…"));
  const element = h("div", { class: "page" }, h("h1", null, "Resources"), asked.fault, fault, bar, resources.element, h("h2", null, "Changes"), changes.element, more);
  return {
    element,
    update(mesh) {
      if (seen >= 0 && mesh.revision !== seen) asked.now();
      seen = mesh.revision;
    },
    stop: asked.stop,
  };
}

function look(resource) {
  dialog({ title: nameOf(refOf(resource)), body: h("pre", { role: "group", tabindex: "0", "aria-label": "The resource" }, lines(resource).join("\n")) });
}

const KINDS = ["Tenant", "Service", "WorkloadEntry", "Endpoint", "AccessPolicy", "RoutePolicy", "RatePolicy", "SLO", "TrustDomain", "Drain", "ExternalService", "Ingress", "Rollout"];
