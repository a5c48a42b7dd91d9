
"use strict";
const $ = id => document.getElementById(id);

function authorised(request) {
  const token = sessionStorage.getItem("token");
  if (token) request.headers.Authorization = `Bearer ${token}`;
  return request;
}

// Read here, not by Swagger UI: a refusal is a question for the token, not an error.
async function start() {
  const { headers } = authorised({ headers: {} });
  const response = await fetch("openapi.json", { headers }).catch(() => null);
  $("access").hidden = response?.status !== 401;
  if (response?.status === 401) {
    $("note").textContent = sessionStorage.getItem("token") ? "The server does not know this token." : "";
    sessionStorage.removeItem("token");
    $("token").focus();
    return;
  }
  if (!response?.ok) {
    $("swagger").textContent = "The server does not answer. Load the page again.";
    return;
  }
  SwaggerUIBundle({ spec: await response.json(), dom_id: "#swagger", requestInterceptor: authorised, validatorUrl: null, docExpansion: "list", defaultModelsExpandDepth: 0 });
}

$("access").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  start();
});
start();
