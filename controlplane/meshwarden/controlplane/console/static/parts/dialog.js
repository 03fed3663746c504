// A dialog: what is going to happen, and the button that makes it happen.
//
//     dialog({ title: "Ban node n1", body: [...], actions: [{ label: "Ban", kind: "danger", run: () => send(...) }] });

import { h, put } from "./dom.js";
import { problem } from "./problem.js";

/**
 * Opens a dialog; returns what closes it.
 *
 * An action has `label`, `kind` ("primary" or "danger") and `run`, which may be async: what it throws is shown, and the
 * dialog stays; it closes once `run` is through, unless that returns false. Where it has `gate`, its button is not live until
 * the function that `gate` is given is called with true.
 */
export function dialog({ title, body, actions = [], onClose = () => {} }) {
  const fault = h("div", { class: "fault" });
  const live = new Map(); // {button: whether it may be pressed}
  let isActing = false;
  const buttons = actions.map(({ label, kind = "primary", run, gate }) => {
    const button = h("button", { type: "button", class: kind, onclick: () => act(run) }, label);
    live.set(button, !gate);
    gate?.((isLive) => {
      live.set(button, isLive);
      draw();
    });
    return button;
  });
  const cancel = h("button", { type: "button", class: "plain", onclick: () => element.close() }, actions.length ? "Cancel" : "Close");
  const element = h(
    "dialog",
    { "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, title),
    h("div", { class: "dialog-body" }, body),
    fault,
    h("div", { class: "dialog-actions" }, cancel, buttons),
  );

  function draw() {
    for (const [button, isLive] of live) button.disabled = isActing || !isLive;
  }

  async function act(run) {
    put(fault);
    isActing = true;
    draw();
    try {
      if ((await run()) !== false) element.close();
    } catch (error) {
      put(fault, problem(error));
    } finally {
      isActing = false;
      draw();
    }
  }

  // What a dialog is about is on the page below it.
  const leave = () => element.close();
  addEventListener("hashchange", leave);
  const opener = document.activeElement;
  element.addEventListener("close", () => {
    // A page that was told of something new meanwhile has another button in its place.
    if (!opener.isConnected) document.querySelector(`main [aria-label="${CSS.escape(opener.ariaLabel ?? "")}"]`)?.focus();
    removeEventListener("hashchange", leave);
    element.remove();
    onClose();
  });
  draw();
  document.body.append(element);
  element.showModal();
  return () => element.close();
}
