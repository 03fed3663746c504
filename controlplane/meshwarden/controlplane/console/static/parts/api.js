// Calls of the REST API, as whoever the browser's session or certificate stands for.

/** What the API refuses, as application/problem+json tells it. */
export class Problem extends Error {
  constructor({ status = 0, title = "", detail = "", faults = [] }) {
    super(detail || title);
    Object.assign(this, { status, title, detail, faults });
  }
}

/** Gets a path's JSON; of the query what is empty is left out. Throws a `Problem`. */
export function get(path, query = {}) {
  return call("GET", withQuery(path, query));
}

/** Sends JSON, and returns what is answered. Throws a `Problem`. */
export function send(method, path, body) {
  return call(method, path, body);
}

/**
 * Follows an event stream; `onMessage` gets the JSON of each message, `onState` "live", "lost" or a `Problem`.
 * Returns what stops it. A stream that is lost is asked for again, but not one that is refused by 403 or 404.
 */
export function watch(path, onMessage, onState = () => {}) {
  let source = null;
  let timer = 0;
  let isOver = false;
  const open = () => {
    source = new EventSource(path);
    source.onopen = () => onState("live");
    source.onmessage = (event) => onMessage(JSON.parse(event.data));
    source.addEventListener("problem", (event) => {
      source.close();
      refused(new Problem(JSON.parse(event.data)));
    });
    source.addEventListener("end", () => {
      source.close();
      again();
    });
    source.onerror = () => {
      onState("lost");
      if (source.readyState === EventSource.CLOSED) {
        refusal(path).then(refused); // a browser gives up on what was refused, and doesn't tell why
      }
    };
  };
  const refused = (problem) => {
    if (isOver) return;
    if (problem) onState(problem);
    if (![403, 404].includes(problem?.status)) again();
  };
  const again = () => {
    if (!isOver) {
      timer = setTimeout(open, 3000);
    }
  };
  open();
  return () => {
    isOver = true;
    clearTimeout(timer);
    source.close();
  };
}

/** Why a stream is refused, a `Problem`, or null where it is not. */
async function refusal(path) {
  const stopping = new AbortController();
  try {
    const answer = await fetch(path, { headers: { accept: "text/event-stream" }, credentials: "same-origin", redirect: "error", signal: stopping.signal });
    if (answer.ok) return null;
    return new Problem({ status: answer.status, title: answer.statusText, ...(await answer.json()) });
  } catch {
    return null; // nobody answers: it is asked for again
  } finally {
    stopping.abort();
  }
}

/** A path with a query, of which what is empty is left out. */
export function withQuery(path, query) {
  const given = Object.entries(query).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const said = new URLSearchParams(given.filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return said.size ? `${path}?${said}` : path;
}

async function call(method, path, body) {
  const headers = { accept: "application/json" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
  }
  const sent = body === undefined ? undefined : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: sent, credentials: "same-origin", redirect: "error" });
  } catch {
    throw new Problem({ title: "No answer", detail: "the control plane does not answer" });
  }
  const text = await answer.text();
  let found = {};
  try {
    found = text ? JSON.parse(text) : {};
  } catch {
    throw new Problem({ status: answer.status, title: "No JSON", detail: "something else than the control plane answers" });
  }
  if (!answer.ok) {
    throw new Problem({ status: answer.status, title: answer.statusText, ...found });
  }
  return found;
}
