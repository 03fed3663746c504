// Recent traces: found by what was in them, and one as a waterfall.

import { h, put } from "../parts/dom.js";
import { live } from "../parts/live.js";
import { whole } from "../parts/number.js";
import { badge, problem } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago, clock, seconds, span } from "../parts/time.js";
import { stroke, waterfall } from "../parts/waterfall.js";

const PAGE = 100;
const SPANS = [["15 min", 900], ["1 h", 3600], ["6 h", 21600], ["1 d", 86400]];

export const page = { path: "traces", title: "Traces", key: "t", show };

function show(context) {
  const [traceId] = context.parameters.rest;
  return traceId ? one(context, traceId) : search(context);
}

/** One trace. A change's is asked for by its revision: "#traces/revision/42". */
function one({ get, parameters }, traceId) {
  const revision = traceId === "revision" ? parameters.rest[1] : "";
  const place = h("div", { class: "page" });
  const path = revision ? `/v1/revisions/${encodeURIComponent(revision)}/trace` : `/v1/traces/${encodeURIComponent(traceId)}`;
  const load = async () => {
    put(place, h("p", { class: "quiet", role: "status" }, "…"));
    try {
      const trace = await get(path);
      const failed = (trace.spans ?? []).filter((span) => span.status === "ERROR").length;
      const first = trace.spans?.[0];
      put(
        place,
        h("p", { class: "quiet" }, first && clock(first.start), ` · ${whole(trace.spans?.length ?? 0)} spans`, failed ? [" · ", badge("bad", `${whole(failed)} failed`)] : "", ` · region ${trace.region ?? ""}`),
        h("section", { class: "panel", "aria-label": "Spans" }, waterfall(trace)),
        (trace.calls ?? []).length > 0 && [h("h2", null, "Calls under it"), calls(trace.calls)],
      );
    } catch (error) {
      put(place, problem(error), h("button", { type: "button", onclick: load }, "Ask again"));
    }
  };
  load();
  const title = revision ? `Trace of revision ${revision}` : `Trace ${traceId}`;
  return { element: h("div", { class: "page" }, h("p", null, h("a", { href: "#traces" }, "← Traces")), h("h1", { class: "break" }, title), place) };
}

function calls(found) {
  const made = traceTable("Calls");
  made.update(found);
  return made.element;
}

function search({ get, go, parameters }) {
  const given = parameters.query;
  const found = traceTable("Traces");
  const service = h("input", { name: "service", value: given.service ?? "", placeholder: "tenant/service", spellcheck: "false" });
  const longest = h("input", { name: "longer", type: "number", min: "0", step: "any", value: given.longer ?? "", class: "short" });
  const failed = h("input", { name: "failed", type: "checkbox", checked: given.failed === "true" });
  const of = h("select", { name: "span" }, SPANS.map(([name, size]) => h("option", { value: size, selected: String(size) === (given.span ?? "3600") }, name)));
  const form = h(
    "form",
    { class: "bar", onsubmit: find },
    h("label", null, "Service", service),
    h("label", null, "Longer than", longest, "ms"),
    h("label", null, failed, "Failed"),
    h("label", null, "Of the last", of),
    h("button", { type: "submit", class: "primary" }, "Find"),
  );

  function find(event) {
    event.preventDefault();
    const asks = { service: service.value.trim(), longer: longest.value, failed: failed.checked ? "true" : "", span: of.value };
    const query = String(new URLSearchParams(Object.entries(asks).filter(([, value]) => value)));
    // The same question again is no other address.
    if (location.hash === `#traces?${query}`) asked.now();
    else go(`traces?${query}`);
  }

  const asked = live(async () => {
    const start = new Date(Date.now() - Number(given.span ?? 3600) * 1000).toISOString();
    const query = { start, service: given.service, failed: given.failed, pageSize: PAGE };
    if (Number(given.longer) > 0) query.minDuration = `${(Number(given.longer) / 1000).toFixed(6)}s`;
    const { traces = [] } = await get("/v1/traces", query);
    found.update(traces);
  }, 5000);
  return { element: h("div", { class: "page" }, h("h1", null, "Traces"), form, asked.fault, found.element), stop: asked.stop };
}

/** A table of traces as SearchTraces has them, each a link to its waterfall. */
export function traceTable(label) {
  const made = table({
    label,
    id: (row) => row.traceId,
    columns: [
      { title: "When", value: (row) => Date.parse(row.start) || 0, show: (row) => ago(row.start) },
      { title: "What", value: (row) => row.name ?? "", show: (row) => h("a", { href: `#traces/${encodeURIComponent(row.traceId)}` }, row.name || row.traceId) },
      { title: "Begins at", value: (row) => row.service ?? "" },
      { title: "Took", value: (row) => seconds(row.duration), show: (row) => h("span", { class: "measured" }, stroke(row, row.longest), span(seconds(row.duration))), align: "right" },
      { title: "Spans", value: (row) => row.spans ?? 0, align: "right" },
      { title: "State", value: (row) => row.errors ?? 0, show: (row) => (row.errors ? badge("bad", `${whole(row.errors)} failed`) : badge("good", "well")) },
      { title: "Goes through", value: (row) => (row.services ?? []).join(", "), wide: true },
    ],
    sort: 0,
    descending: true,
    none: "No trace is like that.",
  });
  return {
    element: made.element,
    update(rows) {
      const longest = Math.max(...rows.map((row) => seconds(row.duration)), 1e-9);
      made.update(rows.map((row) => ({ ...row, longest })));
    },
  };
}
