// What one writes to find or hide: words of a name, and conditions. All must hold; "or" parts alternatives, "!" negates.
//
//     web                 whose name has "web" in it
//     tenant=acme errors>0
//     idle or p95<5       which nothing calls, or that are quick (milliseconds)

const NUMBERS = {
  rate: (one) => one.callsPerS ?? 0,
  errors: (one) => one.errorsPerS ?? 0,
  denied: (one) => one.deniedPerS ?? 0,
  limited: (one) => one.limitedPerS ?? 0,
  p95: (one) => (one.p95S ?? 0) * 1000,
  burn: (one) => one.burn ?? 0,
};
const FLAGS = {
  idle: (one) => !one.callsPerS,
  failing: (one) => (one.errorsPerS ?? 0) > 0,
  denied: (one) => (one.deniedPerS ?? 0) > 0,
  limited: (one) => (one.limitedPerS ?? 0) > 0,
  healthy: (one) => !one.errorsPerS && !one.deniedPerS && !one.limitedPerS,
  external: (one) => Boolean(one.external),
  clear: (one) => one.mutualTls === "NONE",
};
const COMPARE = {
  "=": (left, right) => left === right,
  ">": (left, right) => left > right,
  "<": (left, right) => left < right,
};

/** Reads a query; returns what says of a service or an edge whether it is meant, or null for an empty one. */
export function parse(text) {
  const ways = text.trim().toLowerCase().split(/\s+or\s+/).map((way) => way.split(/\s+/).filter(Boolean).map(term));
  if (!ways.some((way) => way.length)) return null;
  return (one) => ways.some((way) => way.length && way.every((holds) => holds(one)));
}

function term(text) {
  if (text.startsWith("!") && text.length > 1) {
    const inner = term(text.slice(1));
    return (one) => !inner(one);
  }
  const [, key, sign, value] = /^([a-z0-9]+)([=<>])(.*)$/.exec(text) ?? [];
  if (key in NUMBERS && value !== "" && !Number.isNaN(Number(value))) {
    return (one) => COMPARE[sign](NUMBERS[key](one), Number(value));
  }
  if (sign === "=" && key === "tenant") return (one) => names(one).some((name) => name.split("/")[0] === value);
  if (sign === "=" && key === "region") return (one) => (one.regions ?? []).some((region) => region.toLowerCase() === value);
  if (text in FLAGS) return FLAGS[text];
  return (one) => names(one).some((name) => name.toLowerCase().includes(text));
}

function names(one) {
  return one.service ? [one.service] : [one.source, one.destination];
}
