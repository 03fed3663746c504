// A dialog: what is going to happen, and the button that makes it happen.
//
//     dialog({ title: "Ban node n1", body: [...], actions: [{ label: "Ban", kind: "danger", run: () => send(...) }] });

import { h, put } from "./dom.js";
import { problem } from "./problem.js";

/**
 * Opens a dialog; returns what closes it.
 *
 * An action has `label`, `kind` ("primary" or "danger") and `run`, which may be async: what it throws is shown, and the
 * dialog stays; it closes once `run` is through, unless that returns false.
 */
export function dialog({ title, body, actions = [], onClose = () => {} }) {
  const fault = h("div", { class: "fault" });
  const buttons = actions.map(({ label, kind = "primary", run }) => {
    const button = h("button", { type: "button", class: kind, onclick: () => act(run) }, label);
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

  async function act(run) {
    put(fault);
    for (const button of buttons) button.disabled = true;
    try {
      if ((await run()) !== false) element.close();
    } catch (error) {
      put(fault, problem(error));
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  element.addEventListener("close", () => {
    element.remove();
    onClose();
  });
  document.body.append(element);
  element.showModal();
  return () => element.close();
}
