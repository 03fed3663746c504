// The service graph, live: who calls whom, and what does not go well.

import { Drawing } from "../parts/canvas.js";
import { h, put } from "../parts/dom.js";
import { key } from "../parts/keys.js";
import { kindOf } from "../parts/kind.js";
import { rate, whole } from "../parts/number.js";
import { badge, empty } from "../parts/problem.js";
import { parse } from "../parts/query.js";
import { table } from "../parts/table.js";
import { span } from "../parts/time.js";
import { attention } from "./attention.js";
import { WORDS, edgePanel, link, servicePanel } from "./picked.js";

const BY = {
  both: ["Tenants and regions", (service, regions) => (regions > 1 ? [tenantOf(service), regionOf(service)] : [tenantOf(service)])],
  tenant: ["Tenants", (service) => [tenantOf(service)]],
  region: ["Regions", (service) => [regionOf(service)]],
};
// Beyond the first of these the server folds services together, unless one asks for more.
const MOST = [300, 600, 1000];
const HELP = "Words of a name, tenant=acme, region=eu, rate<1, errors>0, p95>100, burn>1, idle, failing, denied, limited, clear; ! negates, or parts";
const TLS = { PROVEN: "proven", SAID: "said by the caller", NONE: "none" };

export const page = { path: "graph", title: "Graph", key: "m", show };

function show({ go, get, send, followMesh, parameters }) {
  let mesh = null;
  let laid = "";
  let isTable = parameters.query.view === "table";
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-describedby": "graph-said", "aria-label": "Service graph: arrow keys go from service to service, Enter opens one, plus, minus and 0 zoom" });
  const drawing = new Drawing(canvas, picked);
  const said = h("p", { id: "graph-said", class: "hidden", role: "status" });
  const find = h("input", { type: "search", placeholder: "Find", "aria-label": "Find", title: HELP, oninput: () => draw() });
  const hide = h("input", { type: "search", placeholder: "Hide", "aria-label": "Hide", title: HELP, oninput: () => draw() });
  const by = h("select", { "aria-label": "Boxes", onchange: () => draw() }, Object.entries(BY).map(([name, [title]]) => h("option", { value: name }, title)));
  const most = h("select", { "aria-label": "Services at most", hidden: true, onchange: () => followMesh(Number(most.value)) }, MOST.map((number) => h("option", { value: number }, `${number} at most`)));
  if (MOST.includes(Number(parameters.query.most))) {
    most.value = parameters.query.most;
    followMesh(Number(most.value));
  }
  const counts = h("span", { class: "quiet", role: "status" });
  const asTable = h("button", { type: "button", "aria-pressed": String(isTable), onclick: () => toggle() }, "Table");
  const zooms = [["−", "Zoom out", () => drawing.zoom(0.8)], ["+", "Zoom in", () => drawing.zoom(1.25)], ["Fit", "Fit all", () => drawing.fit()]];
  const tools = h("div", { class: "tools" }, zooms.map(([text, title, run]) => h("button", { type: "button", "aria-label": title, onclick: run }, text)));
  const stage = h("div", { class: "stage" }, canvas, tools, legend());
  const edges = edgeTable();
  const side = h("div", { class: "side" });
  const body = h("div", { class: "graph" }, stage, edges.element, side);
  const bar = h("div", { class: "bar" }, h("h1", null, "Graph"), find, hide, by, most, asTable, h("span", { class: "push" }, counts));
  const forget = [key("/", "Find", () => find.focus()), key("v", "Table or picture", () => toggle())];
  toggle(isTable);

  function toggle(wanted = !isTable) {
    isTable = wanted;
    asTable.setAttribute("aria-pressed", String(isTable));
    stage.hidden = isTable;
    edges.element.hidden = !isTable;
    draw();
  }

  function draw() {
    if (!mesh) return;
    const hidden = parse(hide.value);
    const services = [...mesh.services.values()].filter((one) => !hidden?.(one));
    const names = new Set(services.map((one) => one.service));
    const shown = [...mesh.edges.values()].filter((one) => names.has(one.source) && names.has(one.destination) && !hidden?.(one));
    const meant = parse(find.value);
    arrange(services, shown);
    if (drawing.picked) drawing.pick(again(drawing.picked));
    drawing.show(services, shown, meant);
    if (isTable) edges.update(meant ? shown.filter(meant) : shown);
    const folded = mesh.allServices > mesh.services.size ? ` of ${whole(mesh.allServices)}` : "";
    most.hidden = mesh.allServices <= MOST[0];
    counts.textContent = `${whole(services.length)}${folded} services · ${whole(shown.length)} edges`;
    tell();
  }

  /** Has everything laid out anew if it is not the same any more; of what only changes its numbers nothing moves. */
  function arrange(services, shown) {
    const signature = `${mesh.shape} ${hide.value} ${by.value}`;
    if (signature === laid) return;
    laid = signature;
    const regions = new Set(services.flatMap((one) => one.regions ?? [])).size;
    const boxes = BY[by.value][1];
    const graph = {
      services: services.map((one) => ({ name: one.service, boxes: boxes(one, regions) })),
      edges: shown.map((one) => [one.source, one.destination]),
    };
    drawing.arrange(graph);
  }

  /** The same thing as it is now; null if it is gone. */
  function again(thing) {
    return (thing.service ? mesh.services.get(thing.service) : mesh.edges.get(`${thing.source} ${thing.destination}`)) ?? null;
  }

  function picked(thing, isOpened) {
    if (isOpened && thing?.service && !thing.folded) {
      go(`service/${thing.service}`);
      return;
    }
    drawing.pick(thing);
    said.textContent = thing ? `${thing.service ?? `${thing.source} to ${thing.destination}`}: ${kindOf(thing)}, ${rate(thing.callsPerS)} calls a second` : "";
    tell();
  }

  function tell() {
    const thing = drawing.picked;
    const panel = thing ? (thing.service ? servicePanel(thing, mesh, picked) : edgePanel(thing, { get, send })) : null;
    if (panel && side.firstElementChild === panel) return;
    const focus = side.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    put(side, panel, attention(mesh, picked));
    if (focus) side.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }

  const element = h("div", { class: "page graph-page" }, bar, said, body);
  return {
    element,
    update(changed) {
      mesh = changed;
      if (!mesh.services.size) {
        put(side, empty("Nothing is in this mesh yet", "Apply a Service, or start the samples: `meshwarden up`."));
        return;
      }
      draw();
    },
    stop() {
      drawing.stop();
      for (const one of forget) one();
      if (most.value !== String(MOST[0])) followMesh();
    },
  };
}

function edgeTable() {
  const number = (title, value, show) => ({ title, value: (one) => value(one) ?? 0, show: (one) => show(value(one) ?? 0), align: "right" });
  return table({
    label: "Edges",
    id: (one) => `${one.source} ${one.destination}`,
    sort: 3,
    descending: true,
    filter: false,
    columns: [
      { title: "State", value: kindOf, show: (one) => badge(kindOf(one), WORDS[kindOf(one)]) },
      { title: "Source", value: (one) => one.source, show: (one) => link(one.source) },
      { title: "Destination", value: (one) => one.destination, show: (one) => link(one.destination) },
      number("Calls/s", (one) => one.callsPerS, rate),
      number("Errors/s", (one) => one.errorsPerS, rate),
      number("Denied/s", (one) => one.deniedPerS, rate),
      number("Limited/s", (one) => one.limitedPerS, rate),
      number("p50", (one) => one.p50S, span),
      number("p95", (one) => one.p95S, span),
      number("p99", (one) => one.p99S, span),
      { title: "mTLS", value: (one) => TLS[one.mutualTls] ?? "" },
      { title: "Regions", value: (one) => (one.regions ?? []).join(", ") },
    ],
  });
}

function legend() {
  const marks = [["good", "goes well"], ["warn", "some calls fail"], ["bad", "fails"], ["denied", "denied"], ["limited", "limited"], ["idle", "idle"]];
  return h("div", { class: "stage-legend" }, marks.map(([kind, text]) => badge(kind, text)), h("span", { class: "text-warn" }, "? without mTLS"));
}

function tenantOf(service) {
  const tenant = service.service.split("/")[0];
  return tenant === "*" ? "more tenants" : tenant;
}

function regionOf(service) {
  return (service.regions ?? []).join(" + ") || "no region";
}
