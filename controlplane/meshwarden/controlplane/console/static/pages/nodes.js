// Nodes and their data planes: who is there, and which revision each has acknowledged.

import { ban, unban } from "../dialogs/ban.js";
import { h, put } from "../parts/dom.js";
import { ifAllowed, live } from "../parts/live.js";
import { percent, whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago, seconds, span } from "../parts/time.js";

const SHARES = [
  ["acknowledged", "good", "acknowledged"],
  ["lagging", "warn", "lag"],
  ["rejected", "bad", "refused"],
  ["unneeded", "idle", "need nothing of it"],
];

export const page = { path: "nodes", title: "Nodes", key: "n", show };

function show({ may, get, send, watch }) {
  const progress = h("section", { class: "panel", "aria-label": "The newest change" });
  let come = null; // what progress:watch has said last
  const nodes = table({
    label: "Nodes",
    id: (row) => row.node,
    columns: nodeColumns(may, { get, send, done: () => asked.now() }),
    text: (row) => row.refusals.map((nack) => nack.message).join(" "),
    none: "No node has joined. `meshwarden token create NODE` makes a token for one.",
  });
  const planes = table({ label: "Data planes", id: (row) => `${row.node} ${row.id}`, columns: PLANES, none: "No data plane is known." });

  async function load() {
    const [status, members, listed] = await Promise.all([get("/v1/status"), ifAllowed(get("/v1/nodes")), get("/v1/dataPlanes")]);
    nodes.update(nodeRows(status, members?.nodes ?? [], come));
    planes.update((listed.dataPlanes ?? []).map(planeRow));
  }

  const asked = live(load, 5000);
  const stop = watch("/v1/progress:watch", (message) => {
    come = message;
    put(progress, summary(message));
    asked.now();
  });
  const element = h("div", { class: "page" }, h("h1", null, "Nodes"), asked.fault, progress, nodes.element, h("h2", null, "Data planes"), planes.element);
  return {
    element,
    stop() {
      stop();
      asked.stop();
    },
  };
}

/** How far the newest change has come. */
function summary(come) {
  return [
    h("div", { class: "panel-head" }, h("h2", null, `Revision ${come.revision}`), h("span", { class: "quiet" }, come.time && ["made ", ago(come.time)])),
    h("div", { class: "shares" }, share("nodes", come.nodes), share("data planes", come.dataPlanes)),
    (come.lagging ?? []).length > 0 && h("p", { class: "text-warn" }, badge("warn", `${come.lagging.map((one) => one.node).join(", ")} ${come.lagging.length > 1 ? "lag" : "lags"}`)),
  ];
}

function share(what, given) {
  const counts = SHARES.map(([field, kind, word]) => ({ kind, word, count: given?.[field] ?? 0 })).filter((one) => one.count);
  const wanted = counts.filter((one) => one.kind !== "idle");
  const total = wanted.reduce((sum, one) => sum + one.count, 0);
  const parts = wanted.map((one) => h("span", { class: one.kind, style: { "--share": `${(one.count / total) * 100}%` } }));
  return h(
    "div",
    null,
    h("div", { class: "share-words" }, h("span", { class: "quiet" }, what), counts.length ? counts.map((one) => badge(one.kind, `${whole(one.count)} ${one.word}`)) : badge("idle", "none")),
    total > 0 && h("span", { class: "stack", "aria-hidden": "true" }, parts),
  );
}

function nodeRows(status, members, come) {
  const lagging = new Map((come?.lagging ?? []).map((one) => [one.node, one]));
  const known = new Map(members.map((one) => [one.node, one]));
  const states = new Map((status.nodes ?? []).map((one) => [one.node, one]));
  return [...new Set([...states.keys(), ...known.keys()])].map((node) => {
    const state = states.get(node) ?? { node };
    return {
      node,
      ban: known.get(node)?.ban,
      connected: state.connected,
      elsewhere: state.controlPlane,
      zone: state.zone,
      agent: state.agentVersion,
      revision: Number(state.ackedRevision ?? 0),
      heard: Boolean(state.lastSeen),
      lag: lagging.get(node)?.since,
      lags: lagging.has(node),
      refusals: state.nacks ?? [],
      workloads: (state.workloads ?? []).length,
      sick: (state.workloads ?? []).filter((one) => one.error).map((one) => `${one.id}: ${one.error}`),
      skew: seconds(state.clockSkew),
      ends: state.health?.notAfter,
      trouble: [state.health?.renewalError, state.health?.diskError].filter(Boolean),
    };
  });
}

function standing(row) {
  if (row.ban) return ["denied", "banned"];
  if (row.connected) return ["good", "connected"];
  return row.elsewhere ? ["good", `at ${row.elsewhere}`] : ["bad", "away"];
}

function progressOf(row) {
  if (row.refusals.length) return ["bad", `refuses ${row.refusals.length}`];
  if (row.lags) return ["warn", "lags"];
  return row.heard || row.elsewhere ? ["good", "up to date"] : ["idle", "unknown"];
}

function nodeColumns(may, { get, send, done }) {
  const columns = [
    { title: "Node", value: (row) => row.node },
    { title: "State", value: (row) => standing(row)[1], show: (row) => badge(...standing(row)) },
    { title: "Revision", value: (row) => row.revision, align: "right" },
    { title: "Progress", value: (row) => progressOf(row)[1], show: (row) => [badge(...progressOf(row)), row.lags && row.lag && h("span", { class: "quiet" }, " since ", ago(row.lag))] },
    { title: "Workloads", value: (row) => row.workloads, align: "right" },
    { title: "Agent", value: (row) => row.agent ?? "", show: (row) => [row.agent, row.zone && `zone ${row.zone}`].filter(Boolean).join(", ") },
    { title: "Certificate ends", value: (row) => Date.parse(row.ends) || 0, show: (row) => (row.ends ? ago(row.ends) : "") },
    { title: "Trouble", value: (row) => troubles(row).join(" "), show: (row) => troubles(row).map((text) => h("div", null, text)), wide: true },
  ];
  if (may("AdminService.BanNode")) {
    const button = (row) =>
      row.ban
        ? h("button", { type: "button", "aria-label": `Unban ${row.node}`, onclick: () => unban({ node: row.node, ban: row.ban, send, done }) }, "Unban…")
        : h("button", { type: "button", "aria-label": `Ban ${row.node}`, onclick: () => ban({ node: row.node, get, send, done }) }, "Ban…");
    columns.push({ title: "Actions", value: () => "", show: button });
  }
  return columns;
}

function troubles(row) {
  const refused = row.refusals.map((nack) => `${nack.dataPlane} refused ${[nack.typeUrl?.split(".").pop(), nack.resource].filter(Boolean).join(" ")}: ${nack.message}`);
  const skew = Math.abs(row.skew) < 1 ? [] : [`its clock is ${span(Math.abs(row.skew))} ${row.skew > 0 ? "ahead" : "behind"}`];
  const reason = row.ban?.reason ? [`banned: ${row.ban.reason}`] : [];
  return [...reason, ...refused, ...row.sick, ...row.trouble, ...skew];
}

function planeRow(given) {
  const types = given.types ?? [];
  const of = (state) => types.filter((one) => one.state === state);
  return {
    node: given.node,
    id: given.ref?.id ?? "",
    tenant: given.ref?.tenant ?? "",
    dialect: (given.ref?.dialect ?? "").toLowerCase(),
    version: given.ref?.version ?? "",
    revision: Number(given.revision ?? 0),
    away: !given.connected,
    refused: given.refused,
    nacked: of("NACKED").map((one) => `${one.typeUrl.split(".").pop()}: ${one.nack?.message ?? ""}`),
    stale: of("STALE").map((one) => one.typeUrl.split(".").pop()),
    resources: types.reduce((sum, one) => sum + (one.resources ?? 0), 0),
    synced: types.length ? of("SYNCED").length / types.length : 1,
  };
}

function planeState(row) {
  if (row.refused || row.nacked.length) return ["bad", "refuses"];
  if (row.stale.length) return ["warn", "behind"];
  return row.away ? ["idle", "away"] : ["good", "synced"];
}

const PLANES = [
  { title: "Data plane", value: (row) => row.id },
  { title: "Node", value: (row) => row.node },
  { title: "State", value: (row) => planeState(row)[1], show: (row) => badge(...planeState(row)) },
  { title: "Revision", value: (row) => row.revision, align: "right" },
  { title: "Resources", value: (row) => row.resources, align: "right" },
  { title: "In step", value: (row) => row.synced, show: (row) => percent(row.synced), align: "right" },
  { title: "Speaks", value: (row) => `${row.dialect} ${row.version}` },
  { title: "Why", value: (row) => [row.refused, ...row.nacked, ...row.stale].filter(Boolean).join("; "), wide: true },
];
