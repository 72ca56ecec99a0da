import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { address } from "./places.js";

const KINDS = { correction: "Correct answers", mhumaneval: "Label answers for MHumanEval" };

function Card({ project, first }) {
  const { submitted, skipped, drafts, today, items, places, filled } = project.progress;
  const link = useRef(null), share = places ? filled / places : 0;
  useLayoutEffect(() => first && link.current?.focus(), []);
  return html`<article class="card">
    <h2>${project.title || project.name}</h2>
    <p class="hint">${KINDS[project.kind]} · ${items} ${items === 1 ? "item" : "items"}</p>
    <div class="progress" role="progressbar" aria-label="Everybody's progress" aria-valuemin="0" aria-valuemax=${places}
      aria-valuenow=${filled}><span style=${{ width: `${100 * share}%` }}></span></div>
    <p class="hint">${filled} of ${places} done by everybody (${Math.floor(100 * share)} %)</p>
    <dl class="counts">
      <div><dt>Today</dt><dd>${today}</dd></div>
      <div><dt>Submitted</dt><dd>${submitted}</dd></div>
      <div><dt>Skipped</dt><dd>${skipped}</dd></div>
      <div><dt>Open drafts</dt><dd>${drafts}</dd></div>
    </dl>
    <p class="actions">
      <a class="button primary" ref=${link} href=${address(project.id, "work")}>${submitted + skipped + drafts ? "Continue" : "Start"}</a>
      <a class="button" href=${address(project.id, "mine")}>History</a>
      <a class="button" href=${address(project.id, "stats")}>Statistics</a>
    </p>
  </article>`;
}

// The comparison that the server was started with, if there is one.
function Compared() {
  const [found, setFound] = useState([]);
  useEffect(() => void call("GET", "/api/comparisons").then(setFound, () => {}), []);
  return found.map((c) => html`<article class="card"><h2>Comparison</h2>
    <p class="hint">${c.items} questions · ${c.models} models${c.blind ? ` · ${c.voted} voted by you` : ""}</p>
    <p class="actions"><a class="button" href="#/compare">${c.blind ? "Vote" : "Compare"}</a></p></article>`);
}

export default function Home({ projects, person }) {
  return html`<div class="page">
    <h1>Hello, ${person.name}</h1>
    ${projects.length === 0 && html`<p>There is no project yet.</p>`}
    <div class="cards">${projects.map((p, i) => html`<${Card} key=${p.id} project=${p} first=${i === 0} />`)}<${Compared} /></div>
  </div>`;
}
