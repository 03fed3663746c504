import { h } from "../parts/dom.js";
export const page = { path: "service", menu: "graph", show: ({ parameters }) => ({ element: h("h1", null, parameters.rest.join("/")) }) };
