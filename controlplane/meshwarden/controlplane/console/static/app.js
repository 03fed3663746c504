// The console: who is here, which page is shown, and the mesh that it is told of.

import { Problem, get, send, watch } from "./parts/api.js";
import { h, put } from "./parts/dom.js";
import { key, list } from "./parts/keys.js";
import { Mesh, follow } from "./parts/mesh.js";
import { badge, empty, problem } from "./parts/problem.js";
import { ago } from "./parts/time.js";
import { apply, choose, tone } from "./parts/tone.js";
import { login } from "./pages/login.js";
import { pages } from "./pages/index.js";

const root = document.getElementById("app");
const TONES = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" };
let mesh = new Mesh();
let me = null; // what GET /v1/session says of who is here
let shown = null; // { page, view } of the page that is open
let stopMesh = () => {};

apply();
start();

/** Finds out who is here; whoever is nobody signs in, and whoever brings a code is asked. */
async function start() {
  const code = codeOf(location.hash);
  if (code) {
    history.replaceState(null, "", location.pathname); // a code is for once, and not for the history
    signIn({ code });
    return;
  }
  try {
    open(await get("/v1/session"));
  } catch (error) {
    if (error.status === 401) signIn();
    else put(root, h("main", { id: "main", class: "login" }, problem(error)));
  }
}

/** Has somebody sign in, whoever was here before. */
function signIn(why = {}) {
  me = null;
  leavePage();
  stopMesh();
  document.querySelector("dialog[open]")?.close();
  document.title = "Sign in · Meshwarden";
  window.onhashchange = () => codeOf(location.hash) && start(); // a link that is opened here
  put(root, login({ ...why, enter: open, leave: start }));
}

async function signOut() {
  await send("DELETE", "/v1/session").catch(() => {});
  signIn();
}

/** The code of an address that `meshwarden console` has printed, if it is one. */
function codeOf(hash) {
  return /^#code=([\w-]+)$/.exec(hash)?.[1];
}

/** Shows the frame around all pages, and the page that the address says. */
function open(who) {
  me = who;
  let followed = null;
  let was = ""; // the address of the page that is shown
  const main = h("main", { id: "main", tabindex: "-1" });
  const menu = h("nav", { "aria-label": "Pages" });
  const state = h("span", { class: "state", role: "status" });
  const where = h("span", { class: "where" });
  const toneButton = h("button", { type: "button", class: "plain", title: "Light or dark", onclick: toTone }, TONES[tone()]);
  const links = pages.filter((page) => page.title).map((page) => h("a", { href: `#${page.path}`, "data-path": page.path }, page.title));
  put(menu, links);
  const name = h(
    "div",
    { class: "who" },
    h("span", { class: "name", title: me.spiffeId ?? me.name }, me.name),
    h("span", { class: "quiet" }, me.tenant ? `tenant ${me.tenant}` : "whole mesh"),
  );
  const feet = h("div", { class: "feet" }, name, toneButton, h("button", { type: "button", class: "plain", onclick: list }, "Keys ?"));
  if (me.byCookie) feet.append(h("button", { type: "button", class: "plain", onclick: signOut }, "Sign out"));
  const brand = h("a", { class: "brand", href: "#graph" }, h("img", { src: "/console/icon.svg", alt: "", width: "22", height: "22" }), "Meshwarden");
  put(root, h("header", null, brand, menu, h("div", { class: "pulse" }, state, where), feet), main);

  for (const page of pages.filter((one) => one.key)) {
    key(`g ${page.key}`, page.title, () => go(page.path));
  }
  key("t", "Light or dark", toTone);

  function toTone() {
    toneButton.textContent = TONES[choose()];
  }

  function show() {
    if (location.hash === "#main") { // the link that skips the menu, which leads to no page
      history.replaceState(null, "", was || location.pathname);
      if (shown) {
        main.focus();
        return;
      }
    }
    was = location.hash || location.pathname;
    leavePage();
    const { path, rest, query } = parse(location.hash);
    const page = pages.find((one) => one.path === path);
    for (const link of links) {
      if (link.dataset.path === (page?.menu ?? path)) {
        link.setAttribute("aria-current", "page");
        link.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a narrow screen the menu is wider than that
      } else link.removeAttribute("aria-current");
    }
    document.title = `${page?.title ?? (rest.join("/") || "Console")} · Meshwarden`;
    if (!page) {
      put(main, empty("There is no such page", h("a", { href: "#graph" }, "The graph"), " is a good place to begin."));
      return;
    }
    const context = { me, may: (method) => me.methods.includes(method), get, send, watch, go, followMesh, parameters: { rest, query } };
    try {
      const view = page.show(context);
      shown = { page, view };
      put(main, view.element);
      if (mesh.heard) view.update?.(mesh);
    } catch (error) {
      put(main, problem(error));
      throw error;
    }
    main.focus({ preventScroll: true });
    main.scrollTop = 0;
  }

  /** Follows the mesh, with so many services at most shown by themselves; the server's own number for 0. */
  function followMesh(most = 0) {
    if (most === followed) return;
    followed = most;
    stopMesh();
    mesh = new Mesh();
    stopMesh = follow({ maxServices: most || "" }, (changed) => {
      mesh = changed;
      put(state, changed.state === "live" ? badge("good", "live") : changed.state === "lost" ? badge("warn", "connection lost") : badge("busy", "connecting"));
      const now = changed.state === "lost" ? ["what is shown is as it was ", ago(changed.now)] : `${changed.trustDomain} · ${changed.region} · revision ${changed.revision}`;
      put(where, changed.heard && now);
      if (changed.state === "lost") check();
      if (changed.heard) shown?.view.update?.(changed);
    });
  }

  window.onhashchange = () => (codeOf(location.hash) ? start() : show());
  followMesh();
  show();
}

/** Has whoever's session is over sign in anew. */
async function check() {
  try {
    await get("/v1/session");
  } catch (error) {
    if (me && error.status === 401) signIn({ reason: new Problem({ title: "Signed out", detail: "The session is over: it has ended, or the control plane has been started anew." }) });
  }
}

function leavePage() {
  shown?.view.stop?.();
  shown = null;
}

/** Goes to a page: `go("service/acme/web")`. */
function go(hash) {
  location.hash = hash;
}

/** What an address says: "#service/acme/web?window=60" is page "service", the rest ["acme", "web"], and a query. */
function parse(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?", 2);
  const [first, ...rest] = path.split("/").map(decode);
  return { path: first || "graph", rest, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
