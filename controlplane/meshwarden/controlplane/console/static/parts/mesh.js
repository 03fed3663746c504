// The mesh as `GET /v1/mesh:watch` tells of it: all at once first, then what has changed.

import { watch, withQuery } from "./api.js";

const PARTS = [
  ["services", (one) => one.service, "goneServices"],
  ["edges", (one) => `${one.source} ${one.destination}`, "goneEdges"],
  ["nodes", (one) => one.node, "goneNodes"],
  ["objectives", (one) => one.slo, "goneObjectives"],
];

/** What is known: `services`, `edges` ("<source> <destination>"), `nodes` and `objectives` are maps by their names; `state` is "wait", "live" or "lost". */
export class Mesh {
  constructor() {
    Object.assign(this, { state: "wait", heard: false, now: "", region: "", trustDomain: "", revision: 0 });
    for (const [part] of PARTS) this[part] = new Map();
    /** Counts changes of which services and edges there are: what a layout depends on. */
    this.shape = 0;
  }

  /** Takes a message in. */
  take(message) {
    let isReshaped = Boolean(message.whole || message.goneServices || message.goneEdges);
    for (const [part, key, gone] of PARTS) {
      if (message.whole) this[part].clear();
      for (const name of message[gone] ?? []) this[part].delete(name);
      for (const one of message[part] ?? []) {
        const known = this[part].get(key(one));
        isReshaped ||= (part === "services" || part === "edges") && !known;
        isReshaped ||= part === "services" && String(known.regions) !== String(one.regions);
        this[part].set(key(one), one);
      }
    }
    for (const field of ["now", "region", "trustDomain", "allServices", "allEdges"]) {
      if (message[field] !== undefined) this[field] = message[field];
    }
    if (message.revision !== undefined) this.revision = Number(message.revision);
    if (isReshaped) this.shape += 1;
    this.heard = true;
  }
}

/** Follows the mesh: `onChange(mesh)` after each message and each change of `state`. Returns what stops it. */
export function follow(query, onChange) {
  const mesh = new Mesh();
  const stop = watch(
    withQuery("/v1/mesh:watch", query),
    (message) => {
      mesh.take(message);
      onChange(mesh);
    },
    (state) => {
      mesh.state = typeof state === "string" ? state : "lost";
      mesh.problem = typeof state === "string" ? null : state;
      onChange(mesh);
    },
  );
  return stop;
}
