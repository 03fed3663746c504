// The pages, in the order of the menu. A page is `{ path, title, key, show(context) }`; ADR 28 has what it is given.

import { page as graph } from "./graph.js";
import { page as service } from "./service.js";

export const pages = [graph, service];
