// A canvas of the page that a worker draws on (drawing_worker.js); what hands do with it is in hand.js.

import { Hand } from "./hand.js";
import { colour, onTone } from "./tone.js";

const COLOURS = ["text", "quiet", "panel", "line", "edge", "box", "box-line", "node", "focus", "good", "bad", "denied", "limited", "idle", "warn"];

/** The drawing on a canvas; `onPick(thing, isOpened)` is told which service or edge is meant, or null. */
export class Drawing {
  constructor(canvas, onPick) {
    Object.assign(this, { canvas, onPick, view: { x: 0, y: 0, scale: 1 }, isFitted: true, picked: null, hovered: null });
    Object.assign(this, { places: new Map(), size: { width: 1, height: 1 }, services: [], edges: [], asked: 0 });
    this.worker = new Worker(scriptURL("/console/parts/drawing_worker.js"), { type: "module" });
    this.worker.onmessage = ({ data }) => data.number === this.asked && this.place(data.made);
    const surface = canvas.transferControlToOffscreen();
    this.worker.postMessage({ surface, colours: colours() }, [surface]);
    const watcher = new ResizeObserver(() => this.resize());
    watcher.observe(canvas);
    this.stops = [() => watcher.disconnect(), onTone(() => this.tell({ colours: colours() }))];
    new Hand(this);
  }

  stop() {
    this.worker.terminate();
    for (const stop of this.stops) stop();
  }

  /** Has a graph laid out, as layout.js takes it. */
  arrange(graph) {
    this.asked += 1;
    this.worker.postMessage({ number: this.asked, graph });
  }

  place({ places, width, height }) {
    this.places = new Map(places.map(([name, x, y]) => [name, { x, y }]));
    this.size = { width, height };
    if (this.isFitted) this.fit();
  }

  /** Takes what there is to draw; `meant` says what is found, null for all. */
  show(services, edges, meant) {
    Object.assign(this, { services, edges });
    const dim = meant ? [...services.filter((one) => !meant(one)).map(nameOf), ...edges.filter((one) => !meant(one)).map(nameOf)] : [];
    this.tell({ services, edges, dim });
  }

  pick(thing) {
    this.picked = thing;
    this.tell({ picked: thing && { service: thing.service, name: nameOf(thing) } });
  }

  hover(thing) {
    if (thing !== this.hovered) this.tell({ hovered: thing && nameOf(thing) });
    this.hovered = thing;
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    const { width, height } = this.size;
    const scale = Math.min(1.25, (clientWidth - 40) / width, (clientHeight - 40) / height);
    this.view = { scale: Math.max(0.02, scale), x: 0, y: 0 };
    this.view.x = (clientWidth - width * this.view.scale) / 2;
    this.view.y = (clientHeight - height * this.view.scale) / 2;
    this.isFitted = true;
    this.look();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const { view } = this;
    const scale = Math.min(3, Math.max(0.03, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    this.isFitted = false;
    this.look();
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return; // not shown: there is a table in its place
    this.tell({ ratio, width: Math.round(clientWidth * ratio), height: Math.round(clientHeight * ratio) });
    if (this.isFitted) this.fit();
  }

  /** Tells where one looks. */
  look() {
    this.tell({ view: this.view });
  }

  tell(news) {
    this.worker.postMessage({ news });
  }
}

function nameOf(thing) {
  return thing.service ?? `${thing.source} ${thing.destination}`;
}

function colours() {
  return Object.fromEntries(COLOURS.map((name) => [name, colour(`--${name}`)]));
}

/** Lets a script of ours start: the page's policy takes no text for a script's address. */
function scriptURL(path) {
  policy ??= globalThis.trustedTypes?.createPolicy("meshwarden", { createScriptURL: (given) => (given.startsWith("/console/") ? given : "") });
  return policy ? policy.createScriptURL(path) : path;
}

let policy;
