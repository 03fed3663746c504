// Bans a node: first which workloads and certificates end with it, and which services have nothing left.

import { h } from "../parts/dom.js";
import { rate } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { ask } from "./ask.js";

/** Opens it. */
export function ban({ node, get, send, done }) {
  const opened = ask({
    title: `Ban node ${node}`,
    label: "Ban",
    kind: "danger",
    look: () => foresee(node, get),
    run: (reason) => send("POST", `/v1/nodes/${encodeURIComponent(node)}:ban`, { reason }),
    done,
    needsReason: true,
  });
  opened.again();
}

async function foresee(node, get) {
  const [status, graph, listed] = await Promise.all([get("/v1/status"), get("/v1/graph"), get("/v1/certificates", { node, pageSize: 1000 })]);
  const state = (status.nodes ?? []).find((one) => one.node === node) ?? {};
  const here = new Map(); // {service: workloads of it on this node}
  for (const workload of state.workloads ?? []) {
    const service = serviceOf(workload.spiffeId);
    here.set(service, (here.get(service) ?? 0) + 1);
  }
  const services = new Map((graph.nodes ?? []).map((one) => [one.service, one]));
  const certificates = (listed.certificates ?? []).filter((one) => !one.denied).length;
  return [
    h("p", null, "It can't attest, renew or have anything signed, its sessions end at once, and the certificates of its workloads are denied: every server of the mesh refuses them. A ban stays until it is taken back."),
    h(
      "dl",
      { class: "facts" },
      [
        ["Session", state.connected ? "is up, and ends" : "none at present"],
        ["Workloads", String((state.workloads ?? []).length)],
        ["Certificates denied", `${certificates}${listed.nextPageToken ? " and more" : ""}`],
        ["Data planes", String((state.dataPlanes ?? []).length)],
      ].map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    ),
    here.size > 0 && h("h3", null, "What it does to calls"),
    h("ul", null, [...here].sort().map(([service, count]) => affected(service, count, services.get(service), graph.edges ?? []))),
  ];
}

/** What becomes of a service that has workloads on the node, and of who calls it. */
function affected(service, count, known, edges) {
  const healthy = known?.healthyEndpoints ?? 0;
  const left = Math.max(0, healthy - count);
  const callers = edges.filter((edge) => edge.destination === service && edge.callsPerS > 0);
  const called = edges.filter((edge) => edge.source === service && edge.callsPerS > 0);
  const word = !healthy ? badge("idle", "takes no calls") : left ? badge("good", `${left} of ${healthy} endpoints stay`) : badge("bad", "has no endpoint left");
  return h(
    "li",
    null,
    h("b", null, service),
    " ",
    word,
    callers.map((edge) => h("div", { class: "why" }, h("span", { class: "quiet" }, "called by "), `${edge.source}, ${rate(edge.callsPerS)}/s`)),
    called.map((edge) => h("div", { class: "why" }, h("span", { class: "quiet" }, "calls "), `${edge.destination}, ${rate(edge.callsPerS)}/s: refused from here`)),
  );
}

/** "acme/web" of ".../tenant/acme/service/web"; else the identity. */
export function serviceOf(spiffeId) {
  const found = /\/tenant\/([^/]+)\/service\/([^/]+)$/.exec(spiffeId ?? "");
  return found ? `${found[1]}/${found[2]}` : (spiffeId ?? "");
}

/** Takes a ban back. */
export function unban({ node, ban: present, send, done }) {
  const opened = ask({
    title: `Take back the ban of ${node}`,
    label: "Unban",
    look: async () => [
      h("p", null, `It was banned by ${present?.by ?? "somebody"}${present?.reason ? `: ${present.reason}` : ""}.`),
      h("p", null, "The node has to attest anew, with a new token where it joined by one. The certificates that were denied stay so until they end."),
    ],
    run: () => send("POST", `/v1/nodes/${encodeURIComponent(node)}:unban`, {}),
    done,
  });
  opened.again();
}
