// What one does with a drawing: drag, wheel, click and keys; and what is where.

import { endsOf, point } from "./curve.js";
import { NODE } from "./layout.js";

const MOVES = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

/** Listens to a drawing's canvas. */
export class Hand {
  constructor(drawing) {
    this.drawing = drawing;
    this.held = null;
    const { canvas } = drawing;
    canvas.addEventListener("pointerdown", (event) => this.hold(event));
    canvas.addEventListener("pointermove", (event) => (this.held ? this.drag(event) : this.hover(event)));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("dblclick", (event) => this.open(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      drawing.zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  hold(event) {
    this.drawing.canvas.setPointerCapture(event.pointerId);
    this.held = { x: event.offsetX, y: event.offsetY, moved: 0 };
  }

  hover(event) {
    const { drawing } = this;
    const found = this.find(event.offsetX, event.offsetY);
    drawing.canvas.classList.toggle("over", Boolean(found));
    drawing.hover(found);
  }

  drag(event) {
    const { drawing, held } = this;
    drawing.view.x += event.offsetX - held.x;
    drawing.view.y += event.offsetY - held.y;
    const moved = held.moved + Math.abs(event.movementX) + Math.abs(event.movementY);
    this.held = { x: event.offsetX, y: event.offsetY, moved };
    if (moved >= 4) drawing.isFitted = false;
    drawing.look();
  }

  release(event) {
    if (this.held && this.held.moved < 4) this.drawing.onPick(this.find(event.offsetX, event.offsetY), false);
    this.held = null;
  }

  open(event) {
    const found = this.find(event.offsetX, event.offsetY);
    if (found) this.drawing.onPick(found, true);
  }

  press(event) {
    const { drawing } = this;
    if (event.key in MOVES) drawing.onPick(this.beside(...MOVES[event.key]), false);
    else if (event.key === "Enter" && drawing.picked) drawing.onPick(drawing.picked, true);
    else if (event.key === "Escape") drawing.onPick(null, false);
    else if (event.key === "+" || event.key === "-") drawing.zoom(event.key === "+" ? 1.25 : 0.8);
    else if (event.key === "0") drawing.fit();
    else return;
    event.preventDefault();
  }

  /** The service or edge at a point of the canvas. */
  find(pointX, pointY) {
    const { drawing } = this;
    const [x, y] = [(pointX - drawing.view.x) / drawing.view.scale, (pointY - drawing.view.y) / drawing.view.scale];
    const service = drawing.services.find((one) => {
      const at = drawing.places.get(one.service);
      return at && x >= at.x && x <= at.x + NODE.width && y >= at.y && y <= at.y + NODE.height;
    });
    if (service) return service;
    const reach = 5 / drawing.view.scale;
    return drawing.edges.find((edge) => {
      const ends = endsOf(drawing.places, edge);
      return ends && Math.min(ends.x1, ends.x2) - 90 <= x && x <= Math.max(ends.x1, ends.x2) + 90 && near(ends, x, y, reach);
    }) ?? null;
  }

  /** The next service in a direction from that which is picked. */
  beside(dx, dy) {
    const { drawing } = this;
    const from = drawing.places.get(drawing.picked?.service);
    if (!from) return drawing.services[0] ?? null;
    let best = null;
    for (const service of drawing.services) {
      const at = drawing.places.get(service.service);
      if (!at || at === from) continue;
      const [x, y] = [at.x - from.x, at.y - from.y];
      const along = x * dx + y * dy;
      const far = along + 3 * Math.abs(x * dy + y * dx);
      if (along > 4 && (!best || far < best.far)) best = { service, far };
    }
    return best?.service ?? drawing.picked;
  }
}

function near(ends, x, y, reach) {
  for (let at = 0; at <= 1; at += 0.04) {
    const [px, py] = point(ends, at);
    if (Math.abs(px - x) < reach + 4 && Math.abs(py - y) < reach) return true;
  }
  return false;
}
