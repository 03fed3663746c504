// Lays graphs out beside the page, so that no frame waits for it.

import { layout } from "./layout.js";

onmessage = ({ data: { number, graph } }) => postMessage({ number, made: layout(graph) });
