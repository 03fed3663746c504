// The audit log of the control plane that answers: who did what, to what, and why.

import { h, put } from "../parts/dom.js";
import { live } from "../parts/live.js";
import { whole } from "../parts/number.js";
import { badge, problem } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { clock } from "../parts/time.js";

const PAGE = 200;
const KINDS = [
  ["all events", ""],
  ["resources", "resource."],
  ["refused calls", "rpc.refused"],
  ["refused connections", "tls.refused"],
  ["denied identities", "identity."],
  ["certificates of workloads", "workload."],
  ["nodes", "node."],
  ["operators", "operator."],
  ["sessions of the console", "session."],
  ["join tokens", "token."],
  ["roots and keys", "authority."],
  ["secrets", "secret."],
];

export const page = { path: "audit", title: "Audit", key: "a", show };

function show({ me, get, parameters }) {
  const known = new Map(); // {number: event}
  let next = "0";
  const events = table({ label: "Events", id: (row) => row.seq, columns: COLUMNS, sort: 0, descending: true, text: (row) => JSON.stringify(row.fields), none: "No event is like that." });
  const kind = h("select", { onchange: anew }, KINDS.map(([name, value]) => h("option", { value, selected: value === (parameters.query.event ?? "") }, name)));
  const more = h("button", { type: "button", onclick: goOn, hidden: true }, "Older events");
  const word = h("span", { role: "status" });
  const fault = h("div", null);
  const query = () => ({ event: kind.value, pageSize: PAGE });

  const asked = live(async () => {
    const wanted = kind.value;
    const answer = await get("/v1/events", query());
    const found = answer.events ?? [];
    if (wanted !== kind.value) return;
    if (!found.some((event) => known.has(event.seq))) {
      known.clear(); // more have come than there are on a page
      next = answer.nextBefore ?? "0";
    }
    take(found);
  }, 3000);

  function take(found) {
    for (const event of found) known.set(event.seq, event);
    events.update([...known.values()].map(row));
    more.hidden = next === "0";
  }

  async function goOn() {
    const wanted = kind.value;
    try {
      const answer = await get("/v1/events", { ...query(), before: next });
      if (wanted !== kind.value) return;
      next = answer.nextBefore ?? "0";
      put(fault);
      take(answer.events ?? []);
    } catch (error) {
      put(fault, problem(error));
    }
  }

  function anew() {
    known.clear();
    take([]);
    asked.now();
  }

  async function verify() {
    word.textContent = "…";
    try {
      const answer = await get("/v1/events:verify");
      put(word, answer.fault ? badge("bad", answer.fault) : badge("good", `the chain of ${whole(answer.seq ?? 0)} events holds`));
    } catch (error) {
      put(word);
      put(fault, problem(error));
    }
  }

  const bar = h("div", { class: "bar" }, h("label", null, "Show", kind), !me.tenant && h("button", { type: "button", onclick: verify }, "Verify the chain"), word);
  return { element: h("div", { class: "page" }, h("h1", null, "Audit"), asked.fault, fault, bar, events.element, more), stop: asked.stop };
}

function row(event) {
  return { seq: Number(event.seq), time: event.time, event: event.event, fields: event.fields ?? {}, hash: event.hash };
}

function who(row) {
  return String(row.fields.by ?? row.fields.caller ?? row.fields.node ?? "");
}

function rest(row) {
  return Object.entries(row.fields).filter(([name]) => name !== "by" && name !== "caller");
}

function text(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** What one wants to know of an event first, in a line; all of it when it is opened. */
function about(row) {
  const told = FIRST.filter((name) => name in row.fields && String(row.fields[name]) !== "");
  const said = told.map((name) => (name === "reason" ? text(row.fields.reason) : `${name} ${text(row.fields[name])}`)).join(" · ");
  const whole = () => h("dl", { class: "facts" }, [...rest(row), ["hash", row.hash]].map(([name, value]) => [h("dt", null, name), h("dd", null, text(value))]));
  const element = h("details", { ontoggle: (event) => event.target.open && event.target.children.length === 1 && event.target.append(whole()) }, h("summary", null, said.length > 140 ? `${said.slice(0, 140)}…` : said || "–"));
  return element;
}

const FIRST = ["reason", "method", "changes", "spiffe_id", "tenant", "name", "node", "role", "revision"];

const COLUMNS = [
  { title: "No", value: (row) => row.seq, align: "right" },
  { title: "When", value: (row) => row.time, show: (row) => h("time", { datetime: row.time }, clock(row.time)) },
  { title: "Event", value: (row) => row.event, show: (row) => (row.event === "rpc.refused" ? badge("denied", row.event) : row.event) },
  { title: "Who", value: who },
  { title: "What of it", value: (row) => rest(row).map(([name, value]) => `${name} ${text(value)}`).join(" "), show: about, wide: true },
];
