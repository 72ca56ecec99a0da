// Items from a file: checked first, taken when they are good.

import { html, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { useTask } from "./task.js";

export function ImportPanel({ project, refresh }) {
  const [file, setFile] = useState(null), [report, setReport] = useState(null), [annotators, setAnnotators] = useState(1), [overlap, setOverlap] = useState(Math.round(100 * project.overlap));
  const [prefill, setPrefill] = useState(false), [keepGoing, setKeepGoing] = useState(false);
  const [run, busy, problem] = useTask();
  const send = (dry) => run(async () => {
    const query = new URLSearchParams({ name: file.name, annotators, overlap: overlap / 100 });
    if (dry) query.set("dry_run", 1);
    if (prefill) query.set("prefill", 1);
    if (keepGoing) query.set("keep_going", 1);
    setReport(null);
    setReport(await call("POST", `/api/projects/${project.id}/import?${query}`, file, 3600000));
    if (!dry) await refresh();
  });
  const good = report && (!report.errors.length || keepGoing);
  return html`<section aria-labelledby="import"><h2 id="import">Import</h2>
    <p class="hint">JSONL (answers of generate, items, or pairs), CSV, parquet, Label Studio or Argilla JSON, or a project's .zip. Images lie inside the file, or in the folder the server was started with.</p>
    <form class="fields" onSubmit=${(event) => (event.preventDefault(), send(true))}>
      <p><label for="file">File</label><input type="file" id="file" accept=".jsonl,.csv,.parquet,.tsv,.json,.zip"
        onChange=${(event) => (setFile(event.target.files[0] || null), setReport(null))} /></p>
      <p class="short"><label for="annotators">People per item</label><input type="number" id="annotators" min="1" max="20" value=${annotators}
        onInput=${(event) => setAnnotators(event.target.value)} /></p>
      <p class="short"><label for="overlap">% for two people</label><input type="number" id="overlap" min="0" max="100" value=${overlap}
        onInput=${(event) => setOverlap(event.target.value)} /></p>
      <p><label class="choice"><input type="checkbox" checked=${prefill} onChange=${(e) => setPrefill(e.target.checked)} /> Pairs start from their chosen answer</label>
        <label class="choice"><input type="checkbox" checked=${keepGoing} onChange=${(e) => setKeepGoing(e.target.checked)} /> Take good rows of a file with bad ones</label></p>
      <button disabled=${busy || !file}>Check</button>
      <button type="button" class="primary" disabled=${busy || !file || !good || !report.dry_run} onClick=${() => send(false)}>Import</button>
    </form>
    ${busy && html`<p class="hint" role="status">Reading…</p>`}${problem}
    ${report && html`<div role="status"><p>${report.rows} rows read: ${report.added} ${report.dry_run ? "would be added" : "added"}, ${report.duplicates} known before${
      report.normalized ? `, ${report.normalized} texts brought to Unicode NFC and plain line ends` : ""}${report.errors.length ? html`, <b>${report.errors.length} not usable</b>` : ""}.</p>
      ${report.errors.length > 0 && html`<div class="scroll errors" tabindex="0" role="region" aria-label="Rows that are not usable"><table><thead><tr><th scope="col">What is wrong</th></tr></thead>
        <tbody>${report.errors.map((e) => html`<tr><td>${e.detail}</td></tr>`)}</tbody></table></div>`}</div>`}
  </section>`;
}
