// Where services stand: by tenant in boxes, in these by region, callers left of those they call. The same services and
// edges are laid out the same way each time. Pure: it runs in a worker (layout_worker.js).
//
// Source: Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures" (1981): layers
// by the longest way, order within a layer by the mean place of neighbours.

export const NODE = { width: 148, height: 38 };
const GAP = { x: 64, y: 12 };
// Between the outermost boxes the numbers of edges need room.
const WIDE = 150;
const PAD = { x: 16, top: 30, bottom: 16 };
const SWEEPS = 4;
const ASPECT = 1.7;
// So many services make one column in any case.
const LEAST = 6;
// What is wider can't be read as a whole anyway.
const BROAD = 4000;

/**
 * Lays out a graph.
 *
 * `services` are `{ name, boxes }`, the boxes from the outermost: ["acme", "eu"]; `edges` are `[source, destination]`.
 * Returns `{ places: [[name, x, y]], boxes: [{ title, depth, x, y, width, height }], width, height }`.
 */
export function layout({ services, edges }) {
  const places = [];
  const boxes = [];
  const known = new Map(services.map((service) => [service.name, service.boxes]));
  const links = edges.filter(([source, destination]) => source !== destination && known.has(source) && known.has(destination));
  const size = group(services, 0, links, known, (made) => made(0, 0));

  // Lays out what has the same boxes down to a depth; `at` is given what sets it down at a place.
  function group(members, depth, within, boxesOf, at) {
    const parts = new Map(); // the title of an inner box, or a service's own name: its members
    for (const service of members) {
      const title = service.boxes[depth];
      const key = title === undefined ? `service ${service.name}` : `box ${title}`;
      if (!parts.has(key)) parts.set(key, { title, members: [], name: service.name });
      parts.get(key).members.push(service);
    }
    const keyOf = (name) => (boxesOf.get(name)[depth] === undefined ? `service ${name}` : `box ${boxesOf.get(name)[depth]}`);
    const outer = new Map();
    const inner = new Map();
    for (const link of within) {
      const [source, destination] = link.map(keyOf);
      if (source === destination) push(inner, source, link);
      else outer.set(`${source}\n${destination}`, [source, destination]);
    }
    const items = [...parts.entries()].sort(([one], [other]) => (one < other ? -1 : 1)).map(([key, part]) => {
      if (part.title === undefined) {
        return { key, ...NODE, set: (x, y) => places.push([part.name, x, y]) };
      }
      let set = null;
      const own = group(part.members, depth + 1, inner.get(key) ?? [], boxesOf, (made) => { set = made; });
      const [width, height] = [own.width + 2 * PAD.x, own.height + PAD.top + PAD.bottom];
      return {
        key, width, height,
        set: (x, y) => {
          boxes.push({ title: part.title, depth, x, y, width, height });
          set(x + PAD.x, y + PAD.top);
        },
      };
    });
    const arranged = arrange(items, [...outer.values()], depth ? GAP.x : WIDE);
    at((x, y) => {
      for (const [item, itemX, itemY] of arranged.items) item.set(x + itemX, y + itemY);
    });
    return arranged;
  }
  boxes.sort((one, other) => one.depth - other.depth);
  return { places, boxes, width: size.width, height: size.height };
}

/** Puts items into columns by their layers, of each column the middle at the same height. */
function arrange(items, links, gap) {
  const linked = new Set(links.flat());
  const columns = ordered(layered(items.filter((item) => linked.has(item.key)), links), links);
  const area = items.reduce((sum, item) => sum + (item.width + gap) * (item.height + GAP.y), 0);
  const most = Math.max(Math.sqrt(area / ASPECT), LEAST * (NODE.height + GAP.y), ...items.map((item) => item.height));
  const folded = merged(columns.flatMap((column) => wrapped(column, most)), most, gap);
  folded.push(...wrapped(items.filter((item) => !linked.has(item.key)), most));
  const height = Math.max(0, ...folded.map(tall));
  const set = [];
  let x = 0;
  for (const column of folded) {
    const width = Math.max(...column.map((item) => item.width));
    let y = (height - tall(column)) / 2;
    for (const item of column) {
      set.push([item, x + (width - item.width) / 2, y]);
      y += item.height + GAP.y;
    }
    x += width + gap;
  }
  return { items: set, width: Math.max(0, x - gap), height };
}

/** Puts short columns under each other where all would be far wider than high. */
function merged(columns, most, gap) {
  const width = columns.reduce((sum, column) => sum + Math.max(...column.map((item) => item.width)) + gap, 0);
  if (width < BROAD || width < 2 * ASPECT * Math.max(...columns.map(tall))) return columns;
  return columns.reduce((found, column) => {
    const last = found.at(-1);
    if (last && tall(last) + GAP.y + tall(column) <= most) last.push(...column);
    else found.push([...column]);
    return found;
  }, []);
}

function tall(column) {
  return column.reduce((sum, item) => sum + item.height + GAP.y, -GAP.y);
}

function wrapped(column, most) {
  const columns = [];
  let height = Infinity;
  for (const item of column) {
    if (height + item.height > most) {
      columns.push([]);
      height = 0;
    }
    columns.at(-1).push(item);
    height += item.height + GAP.y;
  }
  return columns;
}

/** Parts items into layers: each lies right of all that lead to it, except where they call in a circle. */
function layered(items, links) {
  const next = new Map();
  for (const [source, destination] of links) push(next, source, destination);
  const layer = new Map();
  const state = new Map();
  const order = [];
  for (const { key } of items) visit(key);

  // Without recursion: a chain of services may be long.
  function visit(start) {
    const stack = [[start, 0]];
    while (stack.length) {
      const top = stack.at(-1);
      const [key, at] = top;
      if (at === 0 && state.has(key)) {
        stack.pop();
        continue;
      }
      if (at === 0) state.set(key, "open");
      const to = next.get(key) ?? [];
      if (at < to.length) {
        top[1] += 1;
        if (!state.has(to[at])) stack.push([to[at], 0]);
      } else {
        state.set(key, "over");
        order.push(key);
        stack.pop();
      }
      if (to.length === 0 || at >= to.length) continue;
    }
  }

  const rank = new Map(order.reverse().map((key, at) => [key, at]));
  for (const key of order) {
    layer.set(key, layer.get(key) ?? 0);
    for (const to of next.get(key) ?? []) {
      if (rank.get(to) > rank.get(key)) layer.set(to, Math.max(layer.get(to) ?? 0, layer.get(key) + 1));
    }
  }
  const columns = [];
  for (const item of items) {
    (columns[layer.get(item.key)] ??= []).push(item);
  }
  return columns.filter(Boolean);
}

/** Sorts each layer by where its neighbours are. */
function ordered(columns, links) {
  const beside = new Map();
  for (const [source, destination] of links) {
    push(beside, source, destination);
    push(beside, destination, source);
  }
  const place = new Map();
  const note = (column) => column.forEach((item, at) => place.set(item.key, (at + 0.5) / column.length));
  columns.forEach(note);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    for (const column of sweep % 2 ? [...columns].reverse() : columns) {
      const mean = new Map(column.map(({ key }) => {
        const near = beside.get(key) ?? [];
        return [key, near.length ? near.reduce((sum, one) => sum + place.get(one), 0) / near.length : place.get(key)];
      }));
      column.sort((one, other) => mean.get(one.key) - mean.get(other.key) || (one.key < other.key ? -1 : 1));
      note(column);
    }
  }
  return columns;
}

function push(map, key, value) {
  if (map.has(key)) map.get(key).push(value);
  else map.set(key, [value]);
}
