// How a service or an edge does.

// A service that fails so few of its calls does not fail as a whole.
const SOME = 0.01;

/** How something does: "bad" that fails, "warn" that fails some calls, "denied", "limited", "good", or "idle". */
export function kindOf(one) {
  const errors = one.errorsPerS ?? 0;
  if (errors > SOME * (one.callsPerS ?? 0)) return "bad";
  if ((one.deniedPerS ?? 0) > 0) return "denied";
  if ((one.limitedPerS ?? 0) > 0) return "limited";
  if (errors > 0) return "warn";
  return one.callsPerS ? "good" : "idle";
}
