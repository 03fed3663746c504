// How something went on since one looks at it: a line for each kind, of the last minutes.

import { h, put, svg } from "./dom.js";
import { rate } from "./number.js";

const WIDTH = 520;
const HEIGHT = 120;
const SPAN_MS = 180_000;

/** A chart: `element`, and `add(milliseconds, values)`. Of `lines` each is its name and its class: "main", "bad", "denied". */
export function chart(label, lines) {
  const points = [];
  const paths = lines.map(([, kind]) => svg("path", { class: `line ${kind}` }));
  const area = svg("path", { class: "area" });
  const top = h("span", { class: "quiet" });
  const words = h("div", { class: "chart-words" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, svg("path", { class: "grid", d: `M0 ${HEIGHT - 0.5}H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 0.5H${WIDTH}` }), area, paths);
  const element = h("figure", { class: "chart" }, h("div", { class: "chart-head" }, words, top), picture, h("div", { class: "chart-foot quiet" }, h("span", null, "3 min ago"), h("span", null, "now")));

  function add(at, values) {
    points.push([at, values]);
    while (points.length > 2 && points[1][0] < at - SPAN_MS) points.shift();
    const most = nice(Math.max(...points.flatMap(([, known]) => known)));
    const x = (moment) => (((moment - at) / SPAN_MS + 1) * WIDTH).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (value / most) * (HEIGHT - 6)).toFixed(1);
    const way = (line) => points.map(([moment, known], number) => `${number ? "L" : "M"}${x(moment)} ${y(known[line])}`).join("");
    for (const [line, path] of paths.entries()) path.setAttribute("d", way(line));
    area.setAttribute("d", `${way(0)}L${WIDTH} ${HEIGHT}L${x(points[0][0])} ${HEIGHT}Z`);
    top.textContent = `${rate(most)}/s`;
    put(words, lines.map(([name, kind], line) => h("span", { class: `key ${kind}` }, `${name} ${rate(values[line])}`)));
  }

  return { element, add };
}

/** A round number that is no less. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? 10 * power;
}
