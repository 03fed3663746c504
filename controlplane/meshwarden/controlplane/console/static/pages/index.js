// The pages, in the order of the menu. A page is `{ path, title, key, show(context) }`; ADR 28 has what it is given.

import { page as audit } from "./audit.js";
import { page as cost } from "./cost.js";
import { page as graph } from "./graph.js";
import { page as identities } from "./identities.js";
import { page as limits } from "./limits.js";
import { page as nodes } from "./nodes.js";
import { page as resources } from "./resources.js";
import { page as rollouts } from "./rollouts.js";
import { page as service } from "./service.js";
import { page as traces } from "./traces.js";

export const pages = [graph, service, traces, nodes, identities, resources, rollouts, limits, cost, audit];
