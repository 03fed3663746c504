// Denies a certificate or all of an identity, and takes that back: first who would be refused where.

import { h } from "../parts/dom.js";
import { rate, whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { ask } from "./ask.js";
import { serviceOf } from "./ban.js";

/** Opens it for a row of ListCertificates. */
export function deny({ row, get, send, done }) {
  const one = h("input", { type: "radio", name: "deny", value: "one", checked: true, onchange: () => opened.again() });
  const every = h("input", { type: "radio", name: "deny", value: "every", onchange: () => opened.again() });
  const target = () => (one.checked ? { spiffeId: row.spiffeId, serial: row.serial } : { spiffeId: row.spiffeId });
  const above = h(
    "fieldset",
    null,
    h("legend", null, row.spiffeId),
    h("div", null, h("label", null, one, `this certificate, ${row.serial.slice(0, 16)}…: whoever runs as it in the mesh gets another at once`)),
    h("div", null, h("label", null, every, "all of its certificates: it gets no new one, and nobody is sent to it")),
  );

  async function look() {
    const service = serviceOf(row.spiffeId);
    const [graph, listed] = await Promise.all([get("/v1/graph", { service }), get("/v1/certificates", { spiffeId: row.spiffeId, pageSize: 1000 })]);
    const all = (listed.certificates ?? []).filter((found) => !found.denied);
    const hit = one.checked ? all.filter((found) => found.serial === row.serial) : all;
    const held = hit.flatMap((found) => (found.workloads ?? []).map((id) => `${id} on ${found.node}`));
    const edges = (graph.edges ?? []).filter((edge) => edge.callsPerS > 0);
    return [
      h("p", null, badge("denied", `${whole(hit.length)} ${hit.length === 1 ? "certificate is" : "certificates are"} refused by every server of the mesh`)),
      h("p", { class: "quiet" }, held.length ? `Held by ${held.join(", ")}.` : "No workload holds it at present."),
      !one.checked && edges.length > 0 && h("h3", null, "Calls that end"),
      !one.checked && h("ul", null, edges.map((edge) => h("li", null, `${edge.source} → ${edge.destination}, ${rate(edge.callsPerS)}/s`))),
    ];
  }

  const opened = ask({ title: "Deny", label: "Deny", kind: "danger", above, look, run: (reason) => send("POST", "/v1/denied", { targets: [target()], reason }), done, needsReason: true });
  opened.again();
}

/** Takes a deny back. */
export function allow({ row, send, done }) {
  const opened = ask({
    title: "Take a deny back",
    label: "Allow",
    look: async () => [
      h("p", null, badge("good", `${row.target.spiffeId || "whoever has it"} ${row.target.serial ? `with serial number ${row.target.serial}` : ""} is let in again`)),
      h("p", { class: "quiet" }, `It was denied by ${row.by ?? "somebody"}${row.reason ? `: ${row.reason}` : ""}.`),
    ],
    run: (reason) => send("POST", "/v1/denied:allow", { targets: [row.target], reason }),
    done,
  });
  opened.again();
}
