// A trace as a waterfall: each span under the one that caused it, where it was and how long it took.

import { h, svg } from "./dom.js";
import { badge } from "./problem.js";
import { seconds, span as spanOf } from "./time.js";

const AT_ONCE = 500;
const HUES = 8; // classes hue-0 to hue-7: a service's colour, beside its name

/** The waterfall of what GetTrace answers; `open` says which spans show their attributes from the start. */
export function waterfall(trace, { open = () => false } = {}) {
  const spans = arrange(trace.spans ?? []);
  if (!spans.length) return h("p", { class: "quiet" }, "There is no span of it here.");
  const begin = Math.min(...spans.map((one) => one.at));
  const whole = Math.max(...spans.map((one) => one.at + one.took)) - begin || 1e-9;
  const hues = new Map();
  for (const { span } of spans) if (!hues.has(span.service)) hues.set(span.service, hues.size % HUES);
  const rows = spans.slice(0, AT_ONCE).map((one) => row(one, begin, whole, hues.get(one.span.service), open(one.span)));
  const left = spans.length - rows.length + Number(trace.omitted ?? 0);
  return h(
    "div",
    { class: "waterfall" },
    h("div", { class: "legend" }, [...hues].map(([service, hue]) => h("span", { class: `hue-${hue}` }, h("span", { class: "swatch", "aria-hidden": "true" }), service))),
    scale(whole),
    h("ol", null, rows),
    left > 0 && h("p", { class: "quiet" }, `${left} more spans are left out.`),
    trace.incomplete && h("p", { class: "quiet" }, "Something of it is missing here: late, lost, or not yours to see."),
  );
}

/** Spans in the order of a tree, parents first: [{ span, at, took, depth }], times in seconds. */
function arrange(spans) {
  const origin = Math.min(...spans.map((span) => Math.floor(Date.parse(span.start) / 1000)));
  const known = new Map(spans.map((span) => [span.spanId, { span, at: since(span.start, origin), took: seconds(span.duration), below: [] }]));
  const tops = [];
  for (const one of known.values()) {
    const parent = known.get(one.span.parentSpanId);
    (parent && parent !== one ? parent.below : tops).push(one);
  }
  const found = [];
  const seen = new Set();
  const waiting = tops.sort(later).map((one) => [one, 0]);
  while (waiting.length) {
    const [one, depth] = waiting.pop();
    if (seen.has(one)) continue; // spans are what programs say: they may be each other's parents
    seen.add(one);
    found.push({ ...one, depth });
    waiting.push(...one.below.sort(later).map((child) => [child, depth + 1]));
  }
  for (const one of known.values()) if (!seen.has(one)) found.push({ ...one, depth: 0 });
  return found;
}

function later(one, other) {
  return other.at - one.at;
}

/** Seconds from a whole second on, to the nanosecond as far as numbers go: Date has milliseconds alone. */
function since(moment, origin) {
  const fraction = /\.(\d+)/.exec(moment)?.[1] ?? "0";
  return Math.floor(Date.parse(moment) / 1000) - origin + Number(`0.${fraction}`);
}

function scale(whole) {
  const marks = [0, 0.25, 0.5, 0.75].map((share) => h("span", { style: { "--from": `${share * 100}%` } }, spanOf(whole * share)));
  return h("div", { class: "scale", "aria-hidden": "true" }, h("span", null), h("div", { class: "track" }, marks), h("span", { class: "took" }, spanOf(whole)));
}

function row({ span, at, took, depth }, begin, whole, hue, isOpen) {
  const hasFailed = span.status === "ERROR";
  const from = ((at - begin) / whole) * 100;
  const width = Math.max((took / whole) * 100, 0.2);
  const bar = h("span", { class: `block hue-${hue}${hasFailed ? " failed" : ""}`, style: { "--from": `${Math.min(from, 99.8)}%`, "--width": `${Math.min(width, 100 - Math.min(from, 99.8))}%` } });
  const name = h("span", { class: "what", style: { "--depth": Math.min(depth, 16) } }, hasFailed && badge("bad", h("span", { class: "hidden" }, "failed ")), h("b", null, span.name), " ", h("span", { class: "quiet" }, span.service));
  const summary = h("summary", null, name, h("span", { class: "track" }, bar), h("span", { class: "took" }, spanOf(took)));
  // What it says of itself is made when it is looked at: a trace may have thousands of attributes.
  const element = h("details", { ontoggle: (event) => fill(event.target) }, summary);
  const fill = (target) => target.open && target.children.length === 1 && target.append(more(span, begin, at));
  if (isOpen) element.open = true;
  return h("li", null, element);
}

function more(span, begin, at) {
  const facts = [
    ["kind", span.kind],
    ["node", [span.node, span.region].filter(Boolean).join(", ")],
    ["begins after", spanOf(at - begin)],
    ["says", span.statusMessage],
    ["span", span.spanId],
  ];
  return h(
    "div",
    { class: "span-more" },
    list(facts.filter(([, value]) => value)),
    Object.keys(span.attributes ?? {}).length > 0 && list(Object.entries(span.attributes).sort()),
    (span.events ?? []).map((event) => [h("p", null, h("b", null, `event ${event.name}`)), list(Object.entries(event.attributes ?? {}))]),
    (span.links ?? []).map((link) => h("p", null, "has to do with ", h("a", { href: `#traces/${encodeURIComponent(link.traceId)}` }, link.traceId))),
    span.parentMissing && h("p", { class: "quiet" }, "The span that caused it is not here."),
  );
}

function list(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
}

/** A trace's shape in small: how long it took of the longest, and whether it failed. */
export function stroke(summary, longest) {
  const width = Math.max(1, (seconds(summary.duration) / (longest || 1)) * 60);
  return svg("svg", { class: summary.errors ? "stroke failed" : "stroke", width: 60, height: 8, "aria-hidden": "true" }, svg("rect", { width, height: 8, rx: 2 }));
}
