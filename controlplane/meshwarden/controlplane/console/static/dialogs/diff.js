// What changes between two states of a resource, line by line.

import { h } from "../parts/dom.js";

const AROUND = 3; // unchanged lines that stay beside those that change
const BREAKS = /[\u007f-\u009f\u2028\u2029\ufeff]/g; // text in JSON, ends of lines or no text at all in YAML
const MOST = 300_000; // pairs of lines that are compared; of more all come and go

/** The lines of a resource as a manifest has them, in YAML: without what the mesh itself notes, but for its revision where that is to be held against. */
export function lines(resource, hasRevision = false) {
  if (!resource) return [];
  const { kind, metadata, spec } = resource;
  const { record, ...named } = metadata ?? {};
  if (hasRevision && record) named.record = { revision: record.revision };
  return yaml({ kind, metadata: named, spec: spec ?? {} });
}

/** The lines of a value; those of what is in it are indented. */
function yaml(value) {
  const isList = Array.isArray(value);
  return Object.entries(value)
    .filter(([, one]) => one !== undefined)
    .flatMap(([name, one]) => {
      const isDeep = typeof one === "object" && one !== null && Object.keys(one).length > 0;
      const head = isList ? "-" : `${word(name)}:`;
      if (!isDeep) return [`${head} ${scalar(one)}`];
      const below = yaml(one);
      return isList ? [`- ${below[0]}`, ...below.slice(1).map((line) => `  ${line}`)] : [head, ...below.map((line) => `  ${line}`)];
    });
}

function scalar(value) {
  return typeof value === "string" ? word(value) : JSON.stringify(value);
}

function word(text) {
  const isPlain = /^[A-Za-z_/][\w./ -]*$/.test(text) && !/^(true|false|null|yes|no|on|off)$/i.test(text) && text === text.trim();
  return isPlain ? text : JSON.stringify(text).replace(BREAKS, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** [[mark, line]]: "+" and "-" for what comes and goes, " " for what stays. By the longest common subsequence. */
export function compare(before, after) {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(before.length, after.length) - head && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  const [old, fresh] = [before.slice(head, before.length - tail), after.slice(head, after.length - tail)];
  const same = (line) => [" ", line];
  const middle = old.length * fresh.length > MOST ? [...old.map((line) => ["-", line]), ...fresh.map((line) => ["+", line])] : common(old, fresh);
  return [...before.slice(0, head).map(same), ...middle, ...before.slice(before.length - tail).map(same)];
}

function common(old, fresh) {
  const lengths = Array.from({ length: old.length + 1 }, () => new Uint16Array(fresh.length + 1));
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = old[i] === fresh[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const found = [];
  let [i, j] = [0, 0];
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && old[i] === fresh[j]) {
      found.push([" ", old[i]]);
      i += 1;
      j += 1;
    } else if (i < old.length && (j === fresh.length || lengths[i + 1][j] >= lengths[i][j + 1])) {
      found.push(["-", old[i]]);
      i += 1;
    } else {
      found.push(["+", fresh[j]]);
      j += 1;
    }
  }
  return found;
}

/** The difference as an element: each changed line with its mark, and a few lines around. */
export function diff(title, before, after) {
  const all = compare(lines(before), lines(after));
  const near = new Set(all.flatMap(([mark], at) => (mark === " " ? [] : Array.from({ length: 2 * AROUND + 1 }, (_, step) => at + step - AROUND))));
  const shown = [];
  for (const [at, [mark, text]] of all.entries()) {
    if (!near.has(at)) {
      if (near.has(at - 1) || at === 0) shown.push(h("div", { class: "quiet" }, "  …"));
      continue;
    }
    shown.push(mark === " " ? h("div", null, `  ${text}`) : mark === "+" ? h("ins", { class: "add" }, `+ ${text}`) : h("del", { class: "take" }, `- ${text}`));
  }
  return h("div", null, h("h3", null, title), near.size ? h("pre", { class: "diff", role: "group", tabindex: "0", "aria-label": `What changes of ${title}` }, shown) : h("p", { class: "quiet" }, "nothing changes"));
}
