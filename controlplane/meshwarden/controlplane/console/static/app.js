// The console's start: who is looking?
const main = document.getElementById("main");

const answer = await fetch("/v1/session", { headers: { accept: "application/json" } });
main.textContent = answer.ok ? "You are logged in." : "Open the address that `meshwarden console` prints.";
