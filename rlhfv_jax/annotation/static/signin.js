import { html, useEffect, useRef, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";

export function SignIn({ enter, failure }) {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState(failure);
  const [busy, setBusy] = useState(false);
  const field = useRef(null);
  useEffect(() => field.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await enter(await call("POST", "/api/session", { token: token.trim() }));
    } catch (error) {
      setProblem(error.message);
      setBusy(false);
    }
  };
  return html`<main class="signin">
    <form onSubmit=${submit}>
      <img src="/static/icon.svg" alt="" width="40" height="40" />
      <h1>Annotation</h1>
      <label for="token">Your token</label>
      <input id="token" type="password" autocomplete="current-password" spellcheck="false" ref=${field}
        value=${token} onInput=${(event) => setToken(event.target.value)} aria-describedby="token-help" />
      <p id="token-help" class="hint">The project's administrator gave it to you. A link that holds it signs you in too.</p>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
      <button class="primary" disabled=${busy || !token.trim()}>Sign in</button>
    </form>
  </main>`;
}
