// Identities and certificates: who has which, until when, what signs them, and who is denied.

import { allow, deny } from "../dialogs/deny.js";
import { h, put } from "../parts/dom.js";
import { all, ifAllowed, live } from "../parts/live.js";
import { whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago, seconds, span } from "../parts/time.js";

const MOST = 5000;
// Agents renew at half of a certificate's life, give or take a tenth of that half; one with less left waits for something.
const DUE = 0.45;
const LATE = 0.3;

export const page = { path: "identities", title: "Identities", key: "i", show };

function show({ me, may, get, send }) {
  const figures = h("dl", { class: "figures" });
  const certificates = table({ label: "Certificates", id: (row) => `${row.node} ${row.serial}`, columns: certificateColumns(), sort: 3, none: "No workload has a certificate. It gets one when it starts, if an entry says that it may." });
  const roots = table({ label: "Roots", id: (row) => row.fingerprint, columns: ROOTS, filter: false });
  const keys = table({ label: "Keys of JWT-SVIDs", id: (row) => row.kid, columns: KEYS, filter: false, none: "There is none." });
  const bundles = table({ label: "Trust domains", id: (row) => row.trustDomain, columns: BUNDLES, filter: false });
  const denied = table({ label: "Denied", id: (row) => `${row.target.spiffeId} ${row.target.serial}`, columns: deniedColumns(), none: "Nobody is denied.", filter: false });
  const operators = table({ label: "Operators", id: (row) => row.spiffeId, columns: OPERATORS, none: "Nobody but the control plane's own operator.", filter: false });
  const signing = h("div", { class: "page", hidden: true }, h("h2", null, "What signs"), roots.element, h("h2", null, "Keys of JWT-SVIDs"), keys.element, h("h2", null, "Trust domains"), bundles.element);

  function certificateColumns() {
    const columns = [
      { title: "SPIFFE ID", value: (row) => row.spiffeId },
      { title: "Node", value: (row) => row.node },
      { title: "State", value: (row) => standing(row)[1], show: (row) => badge(...standing(row)) },
      { title: "Ends", value: (row) => row.notAfter, show: (row) => ago(row.notAfter) },
      { title: "Life left", value: (row) => Math.round(left(row) * 100), show: life },
      { title: "Workloads", value: (row) => (row.workloads ?? []).join(", "), wide: true },
      { title: "Serial number", value: (row) => row.serial, show: (row) => h("code", { title: row.serial }, `${row.serial.slice(0, 12)}…`) },
    ];
    if (may("AdminService.Deny")) {
      const button = (row) => h("button", { type: "button", "aria-label": `Deny ${row.spiffeId}`, onclick: () => deny({ row, get, send, done: () => asked.now() }) }, "Deny…");
      columns.push({ title: "Actions", value: () => "", show: (row) => !row.denied && button(row) });
    }
    return columns;
  }

  function deniedColumns() {
    const columns = [
      { title: "Denied", value: (row) => row.target.spiffeId || "whoever has it", wide: true },
      { title: "Serial number", value: (row) => row.target.serial ?? "", show: (row) => (row.target.serial ? h("code", null, row.target.serial) : "all of its certificates") },
      { title: "Why", value: (row) => row.reason ?? "", wide: true },
      { title: "By", value: (row) => row.by ?? "" },
      { title: "Since", value: (row) => row.time, show: (row) => ago(row.time) },
      { title: "Until", value: (row) => row.notAfter, show: (row) => ago(row.notAfter) },
    ];
    if (may("AdminService.Allow")) {
      columns.push({ title: "Actions", value: () => "", show: (row) => h("button", { type: "button", "aria-label": `Allow ${row.target.spiffeId || row.target.serial}`, onclick: () => allow({ row, send, done: () => asked.now() }) }, "Allow…") });
    }
    return columns;
  }

  async function load() {
    const tenant = me.tenant || "";
    const [given, listed, rooted, keyed, bundled, operating] = await Promise.all([
      all(get, "/v1/certificates", {}, "certificates", MOST),
      get("/v1/denied"),
      ifAllowed(get("/v1/roots")),
      ifAllowed(get("/v1/jwtKeys")),
      ifAllowed(get("/v1/bundles")),
      ifAllowed(get("/v1/operators", { tenant })),
    ]);
    certificates.update(given);
    denied.update(listed.denied ?? []);
    operators.update(operating?.operators ?? []);
    signing.hidden = !rooted;
    roots.update(rooted?.roots ?? []);
    keys.update(keyed?.keys ?? []);
    bundles.update(bundled?.bundles ?? []);
    const held = given.filter((row) => row.use === "HELD" && !row.denied);
    const late = held.filter((row) => left(row) < LATE).length;
    const next = held.map((row) => row.notAfter).sort()[0];
    put(
      figures,
      figure("Certificates held", given.length >= MOST ? `${whole(held.length)} and more` : whole(held.length)),
      figure("The next ends", next ? ago(next) : "–"),
      figure("Renewal is late", late ? badge("warn", whole(late)) : "0"),
      figure("Denied", whole((listed.denied ?? []).length)),
      rooted && figure("Roots", (rooted.roots ?? []).map((root) => h("div", null, badge(...rootState(root))))),
      (listed.behind ?? []).length > 0 && figure("Not known yet at", listed.behind.join(", ")),
    );
  }

  const asked = live(load, 5000);
  const element = h("div", { class: "page" }, h("h1", null, "Identities"), asked.fault, figures, h("h2", null, "Certificates of workloads"), certificates.element, h("h2", null, "Denied"), denied.element, signing, h("h2", null, "Operators"), operators.element);
  return { element, stop: asked.stop };
}

function figure(title, ...value) {
  return h("div", { class: "figure" }, h("dt", null, title), h("dd", null, value));
}

/** Which share of its life a certificate has before it; 2 where nobody holds it. */
function left(row) {
  if (!row.notBefore) return 2;
  const [begin, end] = [Date.parse(row.notBefore), Date.parse(row.notAfter)];
  return Math.max(0, (end - Date.now()) / (end - begin));
}

function standing(row) {
  if (row.denied) return ["denied", "denied"];
  if (row.use === "NOT_HELD") return ["idle", "replaced"];
  if (row.use !== "HELD") return ["idle", "not heard of"];
  const share = left(row);
  return share < LATE ? ["bad", "renewal is late"] : share < DUE ? ["warn", "is to be renewed"] : ["good", "held"];
}

function life(row) {
  if (!row.notBefore) return "";
  const share = left(row);
  const kind = share < LATE ? "bad" : share < DUE ? "warn" : "";
  return h("span", { class: `meter ${kind}`, role: "img", "aria-label": `${Math.round(share * 100)} % of its life is left`, style: { "--share": `${share * 100}%` } }, h("span", null));
}

const STATES = { PREPARED: ["busy", "prepared"], ACTIVE: ["good", "signs"], OLD: ["idle", "old"], TAINTED: ["bad", "tainted"] };

function rootState(root) {
  return STATES[root.state] ?? ["idle", "unknown"];
}

function next(row) {
  return row.next ? [row.next, row.nextTime && [", ", ago(row.nextTime)]] : "";
}

const ROOTS = [
  { title: "Root", value: (row) => row.fingerprint, show: (row) => h("code", { title: row.fingerprint }, `${row.fingerprint.slice(0, 16)}…`) },
  { title: "State", value: (row) => rootState(row)[1], show: (row) => badge(...rootState(row)) },
  { title: "Since", value: (row) => row.since ?? "", show: (row) => ago(row.since) },
  { title: "Ends", value: (row) => row.notAfter ?? "", show: (row) => ago(row.notAfter) },
  { title: "Next", value: (row) => row.next ?? "", show: next, wide: true },
  { title: "Leads to nodes", value: (row) => (row.usedBy ?? []).length, align: "right" },
  { title: "Would cut off", value: (row) => (row.missing ?? []).join("; "), wide: true },
];

const KEYS = [
  { title: "Key", value: (row) => row.kid, show: (row) => h("code", { title: row.kid }, `${row.kid.slice(0, 16)}…`) },
  { title: "State", value: (row) => rootState(row)[1], show: (row) => badge(...rootState(row)) },
  { title: "Since", value: (row) => row.since ?? "", show: (row) => ago(row.since) },
  { title: "Next", value: (row) => row.next ?? "", show: next, wide: true },
  { title: "Not known yet at", value: (row) => (row.missing ?? []).join("; "), wide: true },
];

const BUNDLES = [
  { title: "Trust domain", value: (row) => row.trustDomain },
  { title: "State", value: (row) => (row.own ? "our own" : row.fault ? "fault" : "trusted"), show: (row) => (row.own ? badge("good", "our own") : row.fault || row.overdue ? badge("warn", row.fault || `overdue for ${span(seconds(row.overdue))}`) : badge("good", "trusted")) },
  { title: "Roots", value: (row) => row.roots ?? 0, align: "right" },
  { title: "Keys of tokens", value: (row) => row.jwtKeys ?? 0, align: "right" },
  { title: "Fetched", value: (row) => row.fetched ?? "", show: (row) => (row.fetched ? ago(row.fetched) : "") },
];

const OPERATORS = [
  { title: "Operator", value: (row) => row.name },
  { title: "Of", value: (row) => row.tenant || "the whole mesh" },
  { title: "Role", value: (row) => (row.role ?? "").toLowerCase() },
  { title: "Let in by", value: (row) => row.by ?? "", wide: true },
  { title: "Since", value: (row) => row.time ?? "", show: (row) => ago(row.time) },
  { title: "Life of a certificate", value: (row) => seconds(row.ttl), show: (row) => span(seconds(row.ttl)), align: "right" },
  { title: "Login ends", value: (row) => row.until ?? "", show: (row) => (row.until ? ago(row.until) : "") },
];
