// Dark or light: as the system has it, or as one says here; kept by this browser.

const KEY = "meshwarden.tone";
const TONES = ["auto", "light", "dark"];
const listeners = new Set();

/** The tone that was chosen: "auto", "light" or "dark". */
export function tone() {
  try {
    const kept = localStorage.getItem(KEY);
    return TONES.includes(kept) ? kept : "auto";
  } catch {
    return "auto";
  }
}

/** Chooses one, or goes on to the next; returns it. */
export function choose(wanted = TONES[(TONES.indexOf(tone()) + 1) % TONES.length]) {
  try {
    localStorage.setItem(KEY, wanted);
  } catch {
    // kept by nobody, it holds until the page is left
  }
  apply(wanted);
  return wanted;
}

/** Applies what was chosen before. */
export function apply(wanted = tone()) {
  document.documentElement.dataset.tone = wanted;
  for (const listener of listeners) listener();
}

/** Has a canvas drawn anew when its colours change; returns what ends that. */
export function onTone(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The value of a colour of the style sheet: `colour("--bad")`. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply());
