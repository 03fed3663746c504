// Rollouts: which stage each is in, which nodes have the change, and how their calls do beside the others'.

import { changeRollout } from "../dialogs/rollout.js";
import { h, put } from "../parts/dom.js";
import { live } from "../parts/live.js";
import { percent, whole } from "../parts/number.js";
import { badge, empty } from "../parts/problem.js";
import { ago, seconds, span } from "../parts/time.js";

const PHASES = {
  PENDING: ["busy", "begins"],
  RUNNING: ["busy", "running"],
  PAUSED: ["warn", "paused"],
  COMMITTED: ["good", "committed"],
  ROLLED_BACK: ["bad", "rolled back"],
  ABORTED: ["idle", "aborted"],
};
const OUTCOMES = { GOOD: ["good", "good"], BAD: ["bad", "bad"], TOO_FEW: ["idle", "too few calls"], UNSURE: ["warn", "unsure"] };
const RUNS = new Set(["PENDING", "RUNNING", "PAUSED"]);

export const page = { path: "rollouts", title: "Rollouts", key: "r", show };

function show({ may, get, send }) {
  const place = h("div", { class: "page" });
  let seen = -1; // the mesh's revision when it was asked last
  const kept = new Map(); // {name: [what was shown, its element]}: focus stays where it is

  const asked = live(async () => {
    const { rollouts = [] } = await get("/v1/rollouts");
    rollouts.sort((one, other) => RUNS.has(phase(other)) - RUNS.has(phase(one)) || begin(other).localeCompare(begin(one)));
    const shown = rollouts.map(cardOf);
    if (!shown.length) {
      put(place, empty("There is no rollout", "A `Rollout` has policies come to a part of the nodes first, and judges by their calls whether it goes on."));
    } else if (shown.length !== place.children.length || shown.some((card, at) => place.children[at] !== card)) {
      put(place, shown);
    }
  }, 2000);

  function cardOf(state) {
    const name = nameOf(state);
    const signature = JSON.stringify(state);
    const known = kept.get(name);
    if (known?.signature === signature) return known.element;
    const element = known?.element ?? h("section", { class: "panel", "aria-label": `Rollout ${name}` });
    const at = [...element.querySelectorAll("button, a")].indexOf(document.activeElement);
    put(element, card(state, may, (action) => changeRollout({ state, name, action, send, done: () => asked.now() })));
    if (at >= 0) element.querySelectorAll("button, a")[at]?.focus({ preventScroll: true });
    kept.set(name, { signature, element });
    return element;
  }

  return {
    element: h("div", { class: "page" }, h("h1", null, "Rollouts"), asked.fault, place),
    update(mesh) {
      if (mesh.revision !== seen) asked.now();
      seen = mesh.revision;
    },
    stop: asked.stop,
  };
}

function nameOf(state) {
  const { tenant, name } = state.rollout.metadata;
  return `${tenant}/${name}`;
}

function phase(state) {
  return state.rollout.status?.phase ?? "PENDING";
}

function begin(state) {
  return state.rollout.status?.startTime ?? "";
}

function card(state, may, act) {
  const { spec, status = {} } = state.rollout;
  const present = phase(state);
  const runs = RUNS.has(present);
  const buttons = may("RolloutService.ChangeRollout") && runs && [
    present === "PAUSED" ? h("button", { type: "button", onclick: () => act("RESUME") }, "Resume…") : h("button", { type: "button", onclick: () => act("PAUSE") }, "Pause…"),
    h("button", { type: "button", onclick: () => act("ABORT") }, "Abort…"),
  ];
  const verdicts = [...(status.verdicts ?? []), ...(state.now ? [state.now] : [])];
  return [
    h("div", { class: "panel-head" }, h("h2", null, nameOf(state), " ", badge(...(PHASES[present] ?? ["idle", present]))), h("div", { class: "bar" }, buttons)),
    h("p", { class: "quiet" }, changes(spec), status.startTime && [" · begun ", ago(status.startTime)], status.endTime && [" · over ", ago(status.endTime)], state.traceId && [" · ", h("a", { href: `#traces/${encodeURIComponent(state.traceId)}` }, "its trace")]),
    status.reason && h("p", null, status.reason),
    h("ol", { class: "stages" }, (spec.stages ?? []).map((stage, at) => stageItem(stage, at, state, verdicts.findLast((one) => (one.stage ?? 0) === at)))),
    verdicts.length > 0 && judgement(verdicts.at(-1), state),
  ];
}

function changes(spec) {
  const of = (kind, list, name) => (list ?? []).map((one) => `${kind} ${name(one)}`);
  const named = (one) => one.metadata?.name;
  const said = [
    ...of("AccessPolicy", spec.accessPolicies, named),
    ...of("RoutePolicy", spec.routePolicies, named),
    ...(spec.deletions ?? []).map((one) => `without ${one.kind} ${one.name}`),
  ];
  return said.join(", ");
}

function part(stage) {
  if (stage.all) return "all nodes";
  if (stage.zone) return `zone ${stage.zone}`;
  return stage.region ? `region ${stage.region}` : `${stage.percent} %`;
}

function stageItem(stage, at, state, verdict) {
  const present = phase(state);
  const current = state.rollout.status?.stage ?? 0;
  const isDone = at < current || present === "COMMITTED";
  const isNow = at === current && RUNS.has(present) && present !== "PENDING";
  const word = isDone ? ["good", "done"] : isNow ? PHASES[present] : at === current && present === "ROLLED_BACK" ? ["bad", "found bad"] : ["idle", "to come"];
  return h(
    "li",
    { class: isNow ? "now" : null, "aria-current": isNow ? "step" : null },
    h("b", null, part(stage)),
    badge(...word),
    h("span", { class: "quiet" }, `held ${span(seconds(stage.hold) || 300)}`),
    isNow && state.rollout.status?.stageTime && h("span", { class: "quiet" }, "since ", ago(state.rollout.status.stageTime)),
    isNow && verdict && h("span", null, `${whole(state.nodesTaken ?? 0)} of ${whole(verdict.nodes ?? 0)} nodes have taken it`),
    !isNow && verdict && h("span", { class: "quiet" }, `${whole(verdict.nodes ?? 0)} of ${whole(verdict.nodesConcerned ?? 0)} nodes`),
  );
}

/** How the calls of the nodes with the change do beside those of the others. */
function judgement(verdict, state) {
  const title = `Judgement of stage ${(verdict.stage ?? 0) + 1}${state.now ? ", so far" : ""}`;
  const rows = (verdict.comparisons ?? []).map((one) =>
    h(
      "tr",
      null,
      h("td", null, one.service),
      h("td", null, one.slo || "99 % availability"),
      h("td", null, one.side === "SERVICE" ? "the service" : "its callers"),
      h("td", null, badge(...(OUTCOMES[one.outcome] ?? ["idle", "not said"]))),
      h("td", { class: "number" }, bad(one.changedBad, one.changedCalls)),
      h("td", { class: "number" }, bad(one.unchangedBad, one.unchangedCalls)),
      h("td", { class: "number" }, percent(one.allowed ?? 0)),
    ),
  );
  const heads = ["Service", "By", "Counted by", "State", "Bad with the change", "Bad without", "May be bad"];
  return h(
    "div",
    { class: "table" },
    h("h3", null, title, " ", badge(...(OUTCOMES[verdict.outcome] ?? ["idle", "not said"]))),
    rows.length > 0 && h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, h("table", null, h("thead", null, h("tr", null, heads.map((text) => h("th", { scope: "col" }, h("span", { class: "head" }, text))))), h("tbody", null, rows))),
  );
}

function bad(count, calls) {
  const [some, all] = [Number(count ?? 0), Number(calls ?? 0)];
  return all ? `${whole(some)} of ${whole(all)} (${percent(some / all)})` : "no calls";
}
