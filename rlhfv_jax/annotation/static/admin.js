// Administration: items in, people and their tokens, who holds what, files out, a copy of the store.

import { html, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { ImportPanel } from "./importing.js";
import { useTask } from "./task.js";

const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export default function Admin({ project, person, refresh }) {
  return html`<div class="page">
    <h1>Administration</h1>
    <${ImportPanel} project=${project} refresh=${refresh} />
    <${People} me=${person} />
    <${Leases} project=${project} />
    <${Exports} project=${project} />
    <${Backup} />
  </div>`;
}

function People({ me }) {
  const [people, setPeople] = useState([]), [name, setName] = useState(""), [role, setRole] = useState("annotator");
  const [shown, setShown] = useState(null);
  const [run, busy, problem] = useTask();
  const read = async () => setPeople(await call("GET", "/api/people"));
  useEffect(() => void run(read), []);
  const add = (event) => {
    event.preventDefault();
    run(async () => {
      setShown({ name, ...(await call("POST", "/api/people", { name, role })) });
      setName("");
      await read();
    });
  };
  const change = (who, body) => run(async () => {
    const found = await call("POST", `/api/people/${who.id}`, body);
    setShown(found.token ? { name: who.name, ...found } : null);
    await read();
  });
  return html`<section aria-labelledby="people"><h2 id="people">People</h2>
    <form class="fields" onSubmit=${add}>
      <p><label for="name">Name</label><input type="text" id="name" maxlength="80" value=${name} onInput=${(e) => setName(e.target.value)} /></p>
      <p><label for="role">Role</label><select id="role" value=${role} onChange=${(e) => setRole(e.target.value)}>
        <option value="annotator">Annotator</option><option value="reviewer">Reviewer</option><option value="admin">Administrator</option></select></p>
      <button class="primary" disabled=${busy || !name.trim()}>Add</button>
    </form>
    ${problem}
    ${shown && html`<div class="token" role="status"><p>${shown.name}'s link, shown this once:</p>
      <p><code>${`${location.origin}/#t=${shown.token}`}</code></p>
      <button type="button" onClick=${() => navigator.clipboard?.writeText(`${location.origin}/#t=${shown.token}`)}>Copy</button></div>`}
    <div class="scroll"><table><thead><tr><th scope="col">Name</th><th scope="col">Role</th><th scope="col" class="number">Submitted</th><th scope="col">Access</th></tr></thead>
      <tbody>${people.map((who) => html`<tr key=${who.id}><th scope="row">${who.name}${who.disabled ? html` <span class="tag">shut out</span>` : ""}</th>
        <td>${who.role}</td><td class="number">${who.submitted}</td><td class="buttons">
          <button type="button" disabled=${busy} onClick=${() => change(who, { token: "new" })} aria-label=${`New token for ${who.name}`}>New token</button>
          ${who.id !== me.id && html`<button type="button" class=${who.disabled ? "" : "danger"} disabled=${busy}
            aria-label=${`${who.disabled ? "Let in" : "Shut out"} ${who.name}`} onClick=${() => change(who, { disabled: !who.disabled })}>${who.disabled ? "Let in" : "Shut out"}</button>`}
        </td></tr>`)}</tbody></table></div></section>`;
}

function Leases({ project }) {
  const [leases, setLeases] = useState(null);
  const [run, busy, problem] = useTask();
  const read = async () => setLeases(await call("GET", `/api/projects/${project.id}/leases`));
  useEffect(() => void run(read), []);
  const end = (l) => run(async () => {
    await call("DELETE", `/api/items/${l.item}/lease/${l.annotator}`);
    await read();
  });
  return html`<section aria-labelledby="leases"><h2 id="leases">Who holds what</h2>${problem}
    ${leases && leases.length === 0 && html`<p class="hint">Nobody holds an item.</p>`}
    ${leases && leases.length > 0 && html`<div class="scroll"><table><thead><tr><th scope="col">Item</th><th scope="col">Held by</th><th scope="col">For</th><th scope="col"></th></tr></thead>
      <tbody>${leases.map((l) => html`<tr key=${`${l.item}/${l.annotator}`}><th scope="row">${l.ext_id}</th><td>${l.name}</td>
        <td>${l.seconds_left > 0 ? `${Math.ceil(l.seconds_left / 60)} min` : "ran out"}</td>
        <td class="buttons"><button type="button" disabled=${busy} onClick=${() => end(l)} aria-label=${`Free item ${l.ext_id} of ${l.name}`}>Free</button></td></tr>`)}</tbody></table></div>`}
    <p><button type="button" disabled=${busy} onClick=${() => run(read)}>Read again</button></p></section>`;
}

const WHOLE = [["label_studio", "Label Studio"], ["argilla", "Argilla"], ["archive", "Whole project"]];
const FORMATS = {
  correction: [["parquet", "RLHF-V parquet"], ["jsonl", "JSONL"], ["csv", "CSV"], ...WHOLE],
  mhumaneval: [["spans", "MHumanEval spans and summary"], ["csv", "CSV"], ...WHOLE],
};

function Exports({ project }) {
  const [done, setDone] = useState([]);
  const [run, busy, problem] = useTask();
  const read = async () => setDone(await call("GET", `/api/projects/${project.id}/exports`));
  useEffect(() => void run(read), []);
  const make = (format) => run(async () => {
    await call("POST", `/api/projects/${project.id}/export`, { format }, 600000);
    await read();
  });
  const counts = (c) => Object.entries(c).map(([name, n]) => `${n} ${name.replaceAll("_", " ")}`).join(", ");
  return html`<section aria-labelledby="exports"><h2 id="exports">Export</h2>
    <p class="actions">${FORMATS[project.kind].map(([key, label]) => html`<button type="button" disabled=${busy} onClick=${() => make(key)}>${label}</button>`)}</p>${problem}
    ${done.length > 0 && html`<div class="scroll"><table><thead><tr><th scope="col">When</th><th scope="col">Files</th><th scope="col">Holds</th></tr></thead>
      <tbody>${done.map((e) => html`<tr key=${e.id}><td class="when">${when(e.at)}</td>
        <td>${e.files.map((f) => html`<p><a download href=${`/api/exports/${encodeURIComponent(f.folder)}/${encodeURIComponent(f.name)}`}>${f.name}</a>
          <span class="hint"> ${(f.bytes / 1024).toFixed(0)} kB, sha256 <span title=${f.sha256}>${f.sha256.slice(0, 12)}…</span></span></p>`)}</td><td>${counts(e.counts)}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

function Backup() {
  const [name, setName] = useState("");
  const [run, busy, problem] = useTask();
  const make = () => run(async () => setName((await call("POST", "/api/backup", {}, 600000)).name));
  return html`<section aria-labelledby="backup"><h2 id="backup">Backup</h2>
    <p class="hint">A consistent copy of the store, in the folder backups of the project directory. Image files are not in it.</p>
    <p class="actions"><button type="button" disabled=${busy} onClick=${make}>Make a backup</button>
      <span role="status">${name && `Written: backups/${name}`}</span></p>${problem}</section>`;
}
