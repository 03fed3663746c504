// Numbers, for people.

/** Calls per second: "0", "0.03", "1.2", "340", "12.3 k". */
export function rate(perSecond) {
  if (!perSecond) return "0";
  if (perSecond < 0.01) return "<0.01";
  if (perSecond < 1) return perSecond.toFixed(2);
  if (perSecond < 9.95) return perSecond.toFixed(1);
  if (perSecond < 10_000) return Math.round(perSecond).toLocaleString("en");
  return `${(perSecond / 1000).toFixed(1)} k`;
}

/** A share, "0 %", "0.02 %", "12 %". */
export function percent(share) {
  if (!share) return "0 %";
  const size = share * 100;
  return `${size < 0.01 ? "<0.01" : size < 1 ? size.toFixed(2) : size < 10 ? size.toFixed(1) : Math.round(size)} %`;
}

/** A whole number with its thousands apart. */
export function whole(number) {
  return Number(number ?? 0).toLocaleString("en");
}

/** Bytes: "12 B", "3.4 MiB". */
export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  let left = Number(size ?? 0);
  while (left >= 1024 && at < units.length - 1) {
    left /= 1024;
    at += 1;
  }
  return `${at && left < 100 ? left.toFixed(1) : Math.round(left)} ${units[at]}`;
}
