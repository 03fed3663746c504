// A table that one can sort and filter, with a keyboard too. It keeps its rows as it is told anew: focus stays.
//
//     const nodes = table({
//       label: "Nodes",
//       id: (node) => node.node,
//       columns: [
//         { title: "Node", value: (node) => node.node },
//         { title: "Behind", value: (node) => node.lag, show: (node) => span(node.lag), align: "right" },
//       ],
//       sort: 1, descending: true,
//     });
//     nodes.update(rows);  page.append(nodes.element);

import { h, put } from "./dom.js";
import { whole } from "./number.js";

const AT_ONCE = 200;

/**
 * Makes a table: `element`, and `update(rows)`.
 *
 * A column has `title`, `value(row)` to sort by, `show(row)` (text or an element; else the value), `align` and `wide`.
 * `id(row)` tells rows apart, `rowClass(row)` gives a class, `text(row)` is what the filter looks at beside the values.
 */
export function table({ label, columns, id, sort = 0, descending = false, filter = true, rowClass, text, none = "Nothing to show." }) {
  let rows = [];
  let most = AT_ONCE;
  const order = { column: sort, descending };
  const kept = new Map(); // id: { row element, what it shows }
  const body = h("tbody", null);
  const count = h("span", { class: "quiet", role: "status" });
  const nothing = h("p", { class: "quiet nothing" }, none);
  const more = h("button", { type: "button", class: "plain", onclick: () => { most += 1000; draw(); } }, "Show more");
  const search = h("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${label}`, oninput: () => draw() });
  const heads = columns.map((column, at) => head(column, at));

  function head(column, at) {
    const button = h("button", { type: "button", onclick: () => sortBy(at) }, column.title);
    return h("th", { scope: "col", class: classOf(column) }, button);
  }

  function sortBy(at) {
    order.descending = order.column === at ? !order.descending : columns[at].align === "right";
    order.column = at;
    draw();
  }

  function draw() {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => matches(row, wanted)).sort(compare);
    const shown = found.slice(0, most).map(rowOf);
    if (shown.length !== body.children.length || shown.some((row, at) => body.children[at] !== row)) {
      reorder(shown);
    }
    for (const [at, column] of heads.entries()) {
      column.setAttribute("aria-sort", at !== order.column ? "none" : order.descending ? "descending" : "ascending");
    }
    const all = `${whole(rows.length)}`;
    count.textContent = found.length === rows.length ? all : `${whole(found.length)} of ${all}`;
    more.hidden = found.length <= most;
    nothing.hidden = found.length > 0;
  }

  function reorder(shown) {
    const focused = document.activeElement;
    put(body, shown);
    if (focused && body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
  }

  function matches(row, wanted) {
    if (!wanted.length) return true;
    const all = `${columns.map((column) => column.value(row)).join(" ")} ${text ? text(row) : ""}`.toLowerCase();
    return wanted.every((word) => all.includes(word));
  }

  function compare(one, other) {
    const value = columns[order.column].value;
    const [left, right] = [value(one) ?? "", value(other) ?? ""];
    const way = typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(String(right), "en", { numeric: true });
    return (order.descending ? -way : way) || String(id(one)).localeCompare(String(id(other)));
  }

  function rowOf(row) {
    const key = id(row);
    // What a column makes of a row may depend on the time, as what is left of a certificate's life does.
    const signature = JSON.stringify([row, columns.map((column) => column.value(row))]);
    const known = kept.get(key);
    if (known?.signature === signature) return known.element;
    const cells = columns.map((column) => h("td", { class: classOf(column) }, column.show ? column.show(row) : column.value(row)));
    const element = known?.element ?? h("tr", null);
    const at = known ? [...element.querySelectorAll("a, button, input")].indexOf(document.activeElement) : -1;
    put(element, cells);
    if (at >= 0) {
      element.querySelectorAll("a, button, input")[at]?.focus({ preventScroll: true });
    }
    element.className = rowClass ? rowClass(row) ?? "" : "";
    kept.set(key, { element, signature });
    return element;
  }

  const bar = filter ? h("div", { class: "table-bar" }, search, count) : null;
  const grid = h("table", null, h("caption", { class: "hidden" }, label), h("thead", null, h("tr", null, heads)), body);
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label, onscroll: () => hint() }, grid);
  const element = h("div", { class: "table" }, bar, scroll, nothing, more);
  const sizes = new ResizeObserver(() => hint());
  for (const one of [scroll, grid]) sizes.observe(one);
  draw();

  /** Shows that there is more to the right, as long as there is. */
  function hint() {
    scroll.classList.toggle("more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
  }

  return {
    element,
    update(given) {
      rows = [...given];
      const known = new Set(rows.map(id));
      for (const key of kept.keys()) {
        if (!known.has(key)) kept.delete(key);
      }
      draw();
    },
  };
}

function classOf(column) {
  return [column.align === "right" && "number", column.wide && "wide"].filter(Boolean).join(" ") || null;
}
