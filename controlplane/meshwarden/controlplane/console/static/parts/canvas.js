// Draws a laid out graph on a canvas, when something has changed. What hands do with it is in hand.js.

import { Hand, bendOf, point } from "./hand.js";
import { NODE } from "./layout.js";
import { percent, rate } from "./number.js";
import { span } from "./time.js";
import { colour, onTone } from "./tone.js";

const KINDS = ["idle", "good", "warn", "limited", "denied", "bad"];
const COLOURS = ["text", "quiet", "panel", "line", "edge", "box", "box-line", "node", "focus", "good", "bad", "denied", "limited", "idle", "warn"];
const DASHES = { idle: [2, 5], limited: [2, 3], denied: [7, 4] };
const MARKS = { warn: "▲", limited: "◆", denied: "✕", bad: "■" };
const UNPROVEN = "?";
// A service that fails so few of its calls does not fail as a whole.
const SOME = 0.01;
// With more edges in sight their numbers hide them.
const MOST_LABELS = 60;
const LABEL_PLACES = [0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78];
const FONT = 'system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

/** How something does: "bad" that fails, "warn" that fails some calls, "denied", "limited", "good", or "idle". */
export function kindOf(one) {
  const errors = one.errorsPerS ?? 0;
  if (errors > SOME * (one.callsPerS ?? 0)) return "bad";
  if ((one.deniedPerS ?? 0) > 0) return "denied";
  if ((one.limitedPerS ?? 0) > 0) return "limited";
  if (errors > 0) return "warn";
  return one.callsPerS ? "good" : "idle";
}

/** The drawing on a canvas; `onPick(thing, isOpened)` is told which service or edge is meant, or null. */
export class Drawing {
  constructor(canvas, onPick) {
    Object.assign(this, { canvas, onPick, view: { x: 0, y: 0, scale: 1 }, isFitted: true, picked: null, hovered: null });
    Object.assign(this, { places: new Map(), boxes: [], size: { width: 1, height: 1 }, services: [], edges: [], meant: null });
    this.context = canvas.getContext("2d");
    this.wanted = 0;
    this.readColours();
    this.stops = [onTone(() => { this.readColours(); this.draw(); })];
    const watcher = new ResizeObserver(() => this.resize());
    watcher.observe(canvas);
    this.stops.push(() => watcher.disconnect());
    new Hand(this);
  }

  stop() {
    cancelAnimationFrame(this.wanted);
    for (const stop of this.stops) stop();
  }

  /** Takes where things stand. */
  place({ places, boxes, width, height }) {
    this.places = new Map(places.map(([name, x, y]) => [name, { x, y }]));
    Object.assign(this, { boxes, size: { width, height } });
    if (this.isFitted) this.fit();
    this.draw();
  }

  /** Takes what there is to draw; `meant` says what is found, null for all. */
  show(services, edges, meant) {
    Object.assign(this, { services, edges, meant, calls: new Map() });
    for (const { source, callsPerS } of edges) if (callsPerS) this.calls.set(source, (this.calls.get(source) ?? 0) + callsPerS);
    this.draw();
  }

  pick(thing) {
    this.picked = thing;
    this.draw();
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const { width, height } = this.size;
    const scale = Math.min(1.25, (clientWidth - 40) / width, (clientHeight - 40) / height);
    this.view = { scale: Math.max(0.02, scale), x: 0, y: 0 };
    this.view.x = (clientWidth - width * this.view.scale) / 2;
    this.view.y = (clientHeight - height * this.view.scale) / 2;
    this.isFitted = true;
    this.draw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const { view } = this;
    const scale = Math.min(3, Math.max(0.03, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    this.isFitted = false;
    this.draw();
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    if (this.isFitted) this.fit();
    this.draw();
  }

  readColours() {
    this.colours = Object.fromEntries(COLOURS.map((name) => [name, colour(`--${name}`)]));
  }

  draw() {
    this.wanted ||= requestAnimationFrame(() => {
      this.wanted = 0;
      this.paint();
    });
  }

  paint() {
    const { context, view, canvas } = this;
    const ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    this.seen = { left: -view.x / view.scale, top: -view.y / view.scale };
    this.seen.right = this.seen.left + canvas.clientWidth / view.scale;
    this.seen.bottom = this.seen.top + canvas.clientHeight / view.scale;
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
      const isDim = (this.meant && !this.meant(edge)) || (focus && edge.source !== focus && edge.destination !== focus);
      const width = kind === "idle" ? 1 : Math.min(4, 1 + Math.log10(1 + edge.callsPerS) * 0.9);
      const style = `${isDim ? 0 : 1} ${KINDS.indexOf(kind)} ${edge === this.picked || edge === this.hovered ? 5 : width.toFixed(1)}`;
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
    context.globalAlpha = this.meant && !this.meant(service) ? 0.25 : 1;
    context.fillStyle = colours.node;
    context.strokeStyle = this.picked === service || this.picked?.service === service.service ? colours.focus : line;
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
      return ends && this.isSeen(ends) && !(this.meant && !this.meant(edge)) && (!focus || edge.source === focus || edge.destination === focus);
    });
    const isLabelled = seen.length <= MOST_LABELS;
    const taken = [];
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const edge of seen) {
      const kind = kindOf(edge);
      const mark = MARKS[kind] ?? (edge.mutualTls === "NONE" ? UNPROVEN : "");
      const isNamed = isLabelled && (edge.callsPerS || edge === this.picked);
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
    const from = this.places.get(edge.source);
    const to = this.places.get(edge.destination);
    if (!from || !to) return null;
    return { x1: from.x + NODE.width, y1: from.y + NODE.height / 2, x2: to.x, y2: to.y + NODE.height / 2 };
  }

  isSeen({ x1, y1, x2, y2 }) {
    const { left, top, right, bottom } = this.seen;
    return Math.max(x1, x2) + 120 >= left && Math.min(x1, x2) - 120 <= right && Math.max(y1, y2) + 40 >= top && Math.min(y1, y2) - 40 <= bottom;
  }
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
