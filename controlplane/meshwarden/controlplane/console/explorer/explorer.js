// Swagger UI on the API's own document, asking as whoever this browser is logged in as.

const STREAM_MS = 3000;
const who = document.getElementById("who");
const answer = await fetch("/v1/session", { headers: { accept: "application/json" } });

if (answer.ok) {
  const me = await answer.json();
  who.textContent = `${me.tenant ? `${me.tenant}/` : ""}${me.name}, ${me.role.toLowerCase()}`;
  window.SwaggerUIBundle({
    url: "/v1/openapi.json",
    dom_id: "#explorer",
    deepLinking: true,
    docExpansion: "none",
    filter: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    // Nothing is asked of anybody else, the validator of swagger.io included.
    validatorUrl: null,
    requestInterceptor,
  });
} else {
  who.textContent = "Nobody is logged in here: open the address that `meshwarden console` prints, then come back.";
}

/** What changes something is JSON, be there a body or not; the cookie goes with it by itself. */
function requestInterceptor(request) {
  request.userFetch = begun;
  if (!["GET", "HEAD", "DELETE"].includes((request.method ?? "GET").toUpperCase())) {
    request.headers["content-type"] = "application/json";
    request.body ??= "{}";
  }
  return request;
}

/** Fetches an answer; of an event stream, which has no end, what comes in the first seconds. */
async function begun(url, options) {
  const answer = await fetch(url, options);
  if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return answer;
  const reader = answer.body.getReader();
  const timer = setTimeout(() => reader.cancel(), STREAM_MS);
  const pieces = [];
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) pieces.push(piece.value);
  clearTimeout(timer);
  return new Response(new Blob(pieces), { status: answer.status, statusText: answer.statusText, headers: answer.headers });
}
