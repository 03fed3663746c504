// Draws a laid out graph on a canvas that is no document's: it runs in a worker, so that no frame of the page waits for it.

import { bendOf, endsOf, point } from "./curve.js";
import { kindOf } from "./kind.js";
import { NODE } from "./layout.js";
import { percent, rate } from "./number.js";
import { span } from "./time_words.js";

const KINDS = ["idle", "good", "warn", "limited", "denied", "bad"];
const DASHES = { idle: [2, 5], limited: [2, 3], denied: [7, 4] };
const MARKS = { warn: "▲", limited: "◆", denied: "✕", bad: "■" };
const UNPROVEN = "?";
// With more edges in sight their numbers hide them.
const MOST_LABELS = 60;
const LABEL_PLACES = [0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78];
const FONT = 'system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

/** Draws what it was told: `take` puts in what is new, by the names of its fields. */
export class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    Object.assign(this, { view: { x: 0, y: 0, scale: 1 }, ratio: 1, colours: {}, picked: null, hovered: null });
    Object.assign(this, { places: new Map(), boxes: [], services: [], edges: [], dim: new Set(), calls: new Map(), wanted: 0 });
  }

  /** Takes in what is new. Of the size it takes `width` and `height`, in pixels; `dim` has what is not found. */
  take({ width, height, places, dim, edges, ...more }) {
    Object.assign(this, more);
    if (width) Object.assign(this.canvas, { width, height });
    if (places) this.places = new Map(places.map(([name, x, y]) => [name, { x, y }]));
    if (dim) this.dim = new Set(dim);
    if (edges) {
      this.edges = edges;
      this.calls = new Map();
      for (const { source, callsPerS } of edges) if (callsPerS) this.calls.set(source, (this.calls.get(source) ?? 0) + callsPerS);
    }
    this.wanted ||= requestAnimationFrame(() => {
      this.wanted = 0;
      this.paint();
    });
  }

  isDim(thing) {
    return this.dim.size > 0 && this.dim.has(nameOf(thing));
  }

  isPicked(edge) {
    const name = nameOf(edge);
    return name === this.picked?.name || name === this.hovered;
  }

  paint() {
    const { context, view, canvas, ratio } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    this.seen = { left: -view.x / view.scale, top: -view.y / view.scale };
    this.seen.right = this.seen.left + canvas.width / ratio / view.scale;
    this.seen.bottom = this.seen.top + canvas.height / ratio / view.scale;
    for (const box of this.boxes) this.paintBox(box);
    this.paintEdges();
    for (const service of this.services) this.paintService(service);
    if (view.scale > 0.5) this.paintMarks();
  }

  paintBox({ title, depth, x, y, width, height }) {
    const { context, colours, view } = this;
    context.fillStyle = depth ? colours.panel : colours.box;
    context.strokeStyle = colours["box-line"];
    context.lineWidth = 1 / Math.min(1, view.scale);
    context.beginPath();
    context.roundRect(x, y, width, height, depth ? 8 : 12);
    context.fill();
    context.stroke();
    const size = Math.min(12 / Math.min(1, view.scale), 26);
    if (size * view.scale < 7) return;
    context.font = `600 ${size}px ${FONT}`;
    context.fillStyle = colours.quiet;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(fitting(context, title, width - 20), x + 12, y + 15);
  }

  paintEdges() {
    const { context, colours, view } = this;
    const focus = this.picked?.service;
    const batches = new Map(); // {style: edges}, so that the context changes style a few times alone
    for (const edge of this.edges) {
      const ends = this.ends(edge);
      if (!ends || !this.isSeen(ends)) continue;
      const kind = kindOf(edge);
      const isDim = this.isDim(edge) || (focus && edge.source !== focus && edge.destination !== focus);
      const width = kind === "idle" ? 1 : Math.min(4, 1 + Math.log10(1 + edge.callsPerS) * 0.9);
      const style = `${isDim ? 0 : 1} ${KINDS.indexOf(kind)} ${this.isPicked(edge) ? 5 : width.toFixed(1)}`;
      if (!batches.has(style)) batches.set(style, []);
      batches.get(style).push(ends);
    }
    for (const [style, found] of [...batches].sort(([one], [other]) => (one < other ? -1 : 1))) {
      const [isClear, kind, width] = style.split(" ").map(Number);
      const name = KINDS[kind];
      context.globalAlpha = isClear ? 1 : 0.18;
      context.strokeStyle = name === "good" || name === "idle" ? colours.edge : colours[name];
      context.lineWidth = Math.max(width, 0.7 / view.scale);
      context.setLineDash(view.scale > 0.25 ? DASHES[name] ?? [] : []);
      context.beginPath();
      for (const ends of found) curve(context, ends);
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  paintService(service) {
    const { context, colours, view } = this;
    const at = this.places.get(service.service);
    if (!at || !this.isSeen({ x1: at.x, y1: at.y, x2: at.x + NODE.width, y2: at.y + NODE.height })) return;
    const kind = kindOf(service);
    const isDown = service.endpoints && !service.healthyEndpoints;
    // What is refused is no fault of the service: its edges tell of that.
    const tone = isDown || service.burn >= 1 ? "bad" : kind === "bad" || kind === "warn" ? kind : kind === "denied" || kind === "limited" || this.calls.has(service.service) ? "good" : kind;
    const line = tone in MARKS ? colours[tone] : colours["box-line"];
    context.globalAlpha = this.isDim(service) ? 0.25 : 1;
    context.fillStyle = colours.node;
    context.strokeStyle = this.picked?.service === service.service ? colours.focus : line;
    context.lineWidth = (this.picked?.service === service.service ? 3 : tone in MARKS ? 2 : 1) / Math.min(1, Math.max(view.scale, 0.3));
    context.beginPath();
    if (service.folded) {
      context.roundRect(at.x + 4, at.y - 4, NODE.width, NODE.height, 6);
      context.stroke();
      context.beginPath();
    }
    context.roundRect(at.x, at.y, NODE.width, NODE.height, 6);
    context.fill();
    if (view.scale <= 0.3 && line !== colours["box-line"]) {
      context.fillStyle = line;
      context.fill();
    }
    context.stroke();
    if (view.scale > 0.3) this.paintWords(service, at, tone);
    context.globalAlpha = 1;
  }

  paintWords(service, at, tone) {
    const { context, colours, view } = this;
    const name = service.folded ? `${service.folded} more services` : service.service.split("/")[1];
    const mark = MARKS[tone] ?? (tone === "good" ? "●" : "○");
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.font = `10px ${FONT}`;
    context.fillStyle = colours[tone];
    context.fillText(mark, at.x + 9, at.y + 13);
    context.font = `600 12px ${FONT}`;
    context.fillStyle = colours.text;
    context.fillText(fitting(context, name, NODE.width - 32), at.x + 23, at.y + 13);
    if (view.scale < 0.55) return;
    context.font = `11px ${FONT}`;
    context.fillStyle = colours.quiet;
    const words = service.callsPerS ? [`${rate(service.callsPerS)}/s`, service.p95S ? span(service.p95S) : ""] : [service.external ? "external" : this.calls.has(service.service) ? `calls ${rate(this.calls.get(service.service))}/s` : "no calls"];
    if (service.burn >= 1) words.push(`burns ${rate(service.burn)}×`);
    context.fillText(fitting(context, words.filter(Boolean).join(" · "), NODE.width - 32), at.x + 23, at.y + 28);
  }

  /** The numbers of edges, and what their colours mean by a shape too: also where nobody proves who they are. */
  paintMarks() {
    const { context, colours } = this;
    const focus = this.picked?.service;
    const seen = this.edges.filter((edge) => {
      const ends = this.ends(edge);
      return ends && this.isSeen(ends) && !this.isDim(edge) && (!focus || edge.source === focus || edge.destination === focus);
    });
    const isLabelled = seen.length <= MOST_LABELS;
    const taken = [];
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const edge of seen) {
      const kind = kindOf(edge);
      const mark = MARKS[kind] ?? (edge.mutualTls === "NONE" ? UNPROVEN : "");
      const isNamed = isLabelled && (edge.callsPerS || this.isPicked(edge));
      if (!mark && !isNamed) continue;
      const ends = this.ends(edge);
      const words = [mark, isNamed && labelOf(edge)].filter(Boolean).join(" ");
      context.font = `10px ${FONT}`;
      const room = context.measureText(words).width + 10;
      const place = free(ends, room, taken);
      if (!place && !mark) continue;
      const [x, y] = place ?? point(ends, 0.5);
      const [text, width] = place ? [words, room] : [mark, 16];
      context.fillStyle = colours.panel;
      context.beginPath();
      context.roundRect(x - width / 2, y - 8, width, 16, 8);
      context.fill();
      context.fillStyle = MARKS[kind] ? colours[kind] : mark ? colours.warn : colours.quiet;
      context.fillText(text, x, y + 0.5);
    }
  }

  ends(edge) {
    return endsOf(this.places, edge);
  }

  isSeen({ x1, y1, x2, y2 }) {
    const { left, top, right, bottom } = this.seen;
    return Math.max(x1, x2) + 120 >= left && Math.min(x1, x2) - 120 <= right && Math.max(y1, y2) + 40 >= top && Math.min(y1, y2) - 40 <= bottom;
  }
}

/** A name for a service or an edge. */
function nameOf(thing) {
  return thing.service ?? `${thing.source} ${thing.destination}`;
}

/** A place on a curve for a label, off those that have one: near the middle if it can be; undefined for none. */
function free(ends, width, taken) {
  const places = LABEL_PLACES.map((at) => point(ends, at));
  const isFree = ([x, y]) => taken.every((one) => Math.abs(one.x - x) > (one.width + width) / 2 || Math.abs(one.y - y) > 16);
  const found = places.find(isFree);
  if (found) taken.push({ x: found[0], y: found[1], width });
  return found;
}

/** The numbers of an edge: its rate, how long calls take, and what share of them is not well. */
function labelOf(edge) {
  const kind = kindOf(edge);
  const part = { bad: edge.errorsPerS, warn: edge.errorsPerS, denied: edge.deniedPerS, limited: edge.limitedPerS }[kind];
  const took = edge.p95S && kind !== "denied" ? span(edge.p95S) : "";
  return [`${rate(edge.callsPerS)}/s`, took, part ? percent(part / edge.callsPerS) : ""].filter(Boolean).join(" · ");
}

function curve(context, { x1, y1, x2, y2 }) {
  const bend = bendOf(x1, x2);
  context.moveTo(x1, y1);
  context.bezierCurveTo(x1 + bend, y1, x2 - bend, y2, x2, y2);
}

const widths = new Map();

/** A text, cut so that it has no more than a width. */
function fitting(context, text, width) {
  const key = `${context.font} ${width | 0} ${text}`;
  let found = widths.get(key);
  if (found === undefined) {
    found = text;
    while (found.length > 1 && context.measureText(found).width > width) found = `${found.replace(/…$/, "").slice(0, -1)}…`;
    if (widths.size > 5000) widths.clear();
    widths.set(key, found);
  }
  return found;
}
