import { h } from "../parts/dom.js";
export const page = { path: "graph", title: "Graph", key: "m", show: () => ({ element: h("h1", null, "Graph") }) };
