// The curves of edges.

import { NODE } from "./layout.js";

/** Where an edge begins and ends, by where services stand; null where one of them stands nowhere. */
export function endsOf(places, edge) {
  const from = places.get(edge.source);
  const to = places.get(edge.destination);
  if (!from || !to) return null;
  return { x1: from.x + NODE.width, y1: from.y + NODE.height / 2, x2: to.x, y2: to.y + NODE.height / 2 };
}

/** How far a curve goes on straight at its ends. */
export function bendOf(x1, x2) {
  return x2 > x1 ? Math.max(24, (x2 - x1) / 2) : 70 + Math.min(60, (x1 - x2) / 8);
}

/** A point of a curve, 0 at its beginning and 1 at its end. */
export function point({ x1, y1, x2, y2 }, at) {
  const bend = bendOf(x1, x2);
  const [a, b, c, d] = [(1 - at) ** 3, 3 * (1 - at) ** 2 * at, 3 * (1 - at) * at ** 2, at ** 3];
  return [a * x1 + b * (x1 + bend) + c * (x2 - bend) + d * x2, (a + b) * y1 + (c + d) * y2];
}
