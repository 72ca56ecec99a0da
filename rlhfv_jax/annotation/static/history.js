// What one has done: a list to choose from, and an item's revisions, any of which can become the draft again.

import { html, useEffect, useReducer, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Shown, skipReason } from "./marks.js";
import { address } from "./places.js";
import { Work } from "./work.js";

const STATES = { "": "All", draft: "Drafts", submitted: "Submitted", skipped: "Skipped" };
const PAGE = 50;
const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const state = (row) => ({ clean: "no hallucination", skipped: "skipped" })[row.verdict] || row.state;

export default function History(given) {
  return given.item ? html`<${Timeline} key=${given.item} ...${given} />` : html`<${List} ...${given} />`;
}

function List({ project }) {
  const [wanted, setWanted] = useState(""), [rows, setRows] = useState(null), [problem, setProblem] = useState("");
  const [more, setMore] = useState(false);
  const read = async (offset) => {
    try {
      const found = await call("GET", `/api/projects/${project.id}/mine?state=${wanted}&limit=${PAGE}&offset=${offset}`);
      setRows((old) => (offset ? [...old, ...found] : found));
      setMore(found.length === PAGE);
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => void read(0), [wanted]);
  return html`<div class="page">
    <h1>Your history</h1>
    <div class="filter" role="group" aria-label="Show">${Object.entries(STATES).map(([key, label]) =>
      html`<button type="button" aria-pressed=${wanted === key} onClick=${() => setWanted(key)}>${label}</button>`)}</div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${rows && rows.length === 0 && html`<p class="hint">Nothing here yet.</p>`}
    ${rows && rows.length > 0 && html`<div class="scroll"><table>
      <thead><tr><th scope="col">Item</th><th scope="col">Text</th><th scope="col">State</th><th scope="col" class="number">Segments</th><th scope="col">Last change</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.id}>
        <td><a href=${address(project.id, "mine", row.id)}>${project.kind === "mhumaneval" ? `#${row.id}` : row.ext_id}</a></td>
        <td>${row.text}${row.text.length >= 160 ? "…" : ""}</td><td><span class=${`tag ${row.state}`}>${state(row)}</span></td>
        <td class="number">${row.segments}</td><td class="when">${when(row.updated)}</td></tr>`)}</tbody></table></div>`}
    ${more && html`<p><button type="button" onClick=${() => read(rows.length)}>More</button></p>`}
  </div>`;
}

function Timeline({ project, person, item, go }) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const [work, setWork] = useState(null), [events, setEvents] = useState([]), [problem, setProblem] = useState("");
  useEffect(() => {
    const made = new Work(project, person, redraw);
    Promise.all([made.open(item), call("GET", `/api/items/${item}/history`)]).then(
      ([opened, found]) => (setWork(opened), setEvents(found)),
      (error) => setProblem(error.message),
    );
    return () => made.leave();
  }, []);
  const act = async (task) => {
    if (await task()) go(project.id, "work", item);
    else setProblem(work.problems[0] || work.problem || "It was changed elsewhere meanwhile; reload the page.");
  };
  if (!work) return html`<p class=${problem ? "page problem" : "loading"} role="status">${problem || "Loading…"}</p>`;
  return html`<div class="page">
    <p><a href=${address(project.id, "mine")}>← Your history</a></p>
    <h1>Item ${work.item.ext_id}</h1>
    <div class="about"><img src=${`/api/image/${work.item.image}`} alt="The image the answer is about" />
      <section><h3>Prompt</h3><p>${work.item.prompt}</p><h3>Answer</h3><p class="diff">${work.item.response}</p></section></div>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <p class="actions">${work.state === "draft"
      ? html`<a class="button primary" href=${address(project.id, "work", item)}>Go on with it</a>`
      : html`<button type="button" class="primary" disabled=${work.busy} onClick=${() => act(() => work.reopen())}>Reopen</button>`}</p>
    <h2>Revisions</h2>
    <ol class="timeline">${events.map((event, i) => html`<li key=${event.rev}>
      <p class="line"><b>Revision ${event.rev}</b> <span class=${`tag ${event.state}`}>${event.kind}${event.verdict === "clean" ? ", no hallucination" : ""}</span>
        <span class="hint">${when(event.at)}${event.skip_reason ? `; ${skipReason(project, event.skip_reason)}` : ""}</span><span class="space"></span>
        ${i > 0 && html`<button type="button" disabled=${work.busy} onClick=${() => act(() => work.useRevision(event))}
          aria-label=${`Restore revision ${event.rev}`}>Restore</button>`}</p>
      <${Shown} project=${project} response=${work.item.response} copy=${event} /></li>`)}</ol>
  </div>`;
}
