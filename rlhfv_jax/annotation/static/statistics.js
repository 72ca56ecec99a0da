// The paper's row about its data beside the project's own; MHumanEval's columns; who did how much.

import { html, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Badge, paint } from "./marks.js";

const spelled = (v, digits = 1, unit = "") =>
  v.value === null ? "–" : html`${v.value.toFixed(digits)}${unit} <span class="hint">[${v.low.toFixed(digits)}, ${v.high.toFixed(digits)}]</span>`;
const heads = (...names) => html`<thead><tr>${names.map((name, i) => html`<th scope="col" class=${i ? "number" : ""}>${name}</th>`)}</tr></thead>`;
const Table = ({ label, children }) => html`<div class="scroll" tabindex="0" role="region" aria-label=${label}><table>${children}</table></div>`;

function Bar({ share, type }) {
  return html`<span class="bar" style=${paint(type)}><span style=${{ width: `${Math.min(100, share || 0)}%` }}></span></span>`;
}

export default function Statistics({ project }) {
  const [found, setFound] = useState(null), [problem, setProblem] = useState("");
  useEffect(() => void call("GET", `/api/projects/${project.id}/stats`).then(setFound, (error) => setProblem(error.message)), []);
  if (!found) return html`<p class=${problem ? "page problem" : "loading"} role="status">${problem || "Counting…"}</p>`;
  const { corrected, clean, skipped } = found.verdicts;
  return html`<div class="page">
    <h1>Statistics</h1>
    <dl class="counts">
      <div><dt>Finished</dt><dd>${found.finished}</dd></div>
      <div><dt>${project.kind === "correction" ? "Corrected" : "With hallucination"}</dt><dd>${corrected}</dd></div>
      <div><dt>No hallucination</dt><dd>${clean}</dd></div><div><dt>Skipped</dt><dd>${skipped}</dd></div>
      ${found.states.needs_adjudication > 0 && html`<div><dt>Items to adjudicate</dt><dd>${found.states.needs_adjudication}</dd></div>`}
    </dl>
    ${found.finished === 0 ? html`<p class="hint">Figures appear when the first item is finished.</p>`
      : project.kind === "correction" ? html`<${Corrections} project=${project} found=${found} />` : html`<${Labels} project=${project} found=${found} />`}
    ${found.people?.length > 0 && html`<${People} people=${found.people} />`}
    <p class="hint">Brackets hold 95 % intervals. An item that several people do counts once: what they agree on, or what was adjudicated. Gold items count for annotators alone.</p>
  </div>`;
}

function Corrections({ project, found }) {
  const rows = [
    ["Words per response, corrected", spelled(found.words), found.words.paper],
    ["Words per response, before", spelled(found.words_before), ""],
    ["Segments per response", spelled(found.segments, 2), found.segments.paper],
    ["Segments per corrected response", spelled(found.segments_of_corrected, 2), ""],
    ["Responses without hallucination", spelled(found.clean, 1, " %"), ""],
  ];
  const most = Math.max(1, ...Object.values(found.segments_histogram));
  return html`
    <section><h2>Beside the paper</h2><${Table} label="Beside the paper">${heads("", "This project", "RLHF-V paper")}
      <tbody>${rows.map(([name, ours, paper]) => html`<tr><th scope="row">${name}</th><td class="number">${ours}</td><td class="number">${paper}</td></tr>`)}</tbody></${Table}></section>
    <section><h2>Hallucination types</h2><${Table} label="Hallucination types">${heads("Type", "Segments", "Share", "Paper")}
      <tbody>${project.types.map((t) => {
        const share = found.types[t.key];
        return html`<tr><th scope="row"><${Badge} type=${{ ...t, label: "" }} /> ${t.label}<${Bar} share=${share.value} type=${t} /></th>
          <td class="number">${share.count}</td><td class="number">${spelled(share, 1, " %")}</td><td class="number">${share.paper === null ? "" : `${share.paper.toFixed(1)} %`}</td></tr>`;
      })}</tbody></${Table}></section>
    <div class="pair">
      <section><h2>Segments in a response</h2><${Table} label="Segments in a response">${heads("Segments", "Responses")}
        <tbody>${Object.entries(found.segments_histogram).map(([n, count]) => html`<tr><th scope="row">${n}<${Bar} share=${(100 * count) / most} /></th><td class="number">${count}</td></tr>`)}</tbody></${Table}></section>
      <section><h2>Models</h2><${Table} label="Models">${heads("Model", "Responses", "Segments each", "Clean")}
        <tbody>${Object.entries(found.models).map(([name, of]) => html`<tr><th scope="row">${name}</th><td class="number">${of.responses}</td>
          <td class="number">${of.segments.toFixed(2)}</td><td class="number">${spelled(of.clean, 1, " %")}</td></tr>`)}</tbody></${Table}></section>
    </div>`;
}

function Labels({ project, found }) {
  const columns = [...project.types.map((t) => [t.key, t.label]), ["all", "All"]];
  return html`<section><h2>MHumanEval</h2>
    <p class="hint">Percent of responses with a hallucination of the type; Resp. is All over the items of MMHal-Bench.</p>
    <${Table} label="MHumanEval">${heads("Model", "Responses", ...columns.map(([, label]) => label), "Resp.", "Segments")}
      <tbody>${Object.entries(found.models).map(([name, of]) => html`<tr><th scope="row">${name}</th><td class="number">${of.responses}</td>
        ${columns.map(([key]) => html`<td class="number">${spelled(of.rates[key])}</td>`)}
        <td class="number">${spelled(of.mmhal)}</td><td class="number">${of.segments}</td></tr>`)}</tbody></${Table}></section>`;
}

function People({ people }) {
  return html`<section><h2>Annotators</h2><${Table} label="Annotators">${heads("Who", "Finished", "Items an hour", "Median seconds", "Hours", "Segments each", "No hallucination", "Skipped", "Gold F1", "Same verdict as others", "F1 with others", "Under 3 s", "Rewrites")}
    <tbody>${people.map((p) => html`<tr><th scope="row">${p.annotator}</th><td class="number">${p.finished}</td><td class="number">${p.items_per_hour ?? "–"}</td>
      <td class="number">${p.median_seconds.toFixed(0)}</td><td class="number">${(p.active_seconds / 3600).toFixed(1)}</td><td class="number">${p.segments.toFixed(2)}</td>
      <td class="number">${(100 * p.clean_share).toFixed(0)} %</td><td class="number">${p.skipped}</td>
      <td class="number">${p.gold ? html`${p.gold.f1.toFixed(2)} <span class="hint">(${p.gold.items})</span>` : "–"}</td>
      <td class="number">${p.others ? html`${(100 * p.others.same_verdict).toFixed(0)} % <span class="hint">(${p.others.comparisons})</span>` : "–"}</td>
      <td class="number">${p.others?.overlap_f1 == null ? "–" : p.others.overlap_f1.toFixed(2)}</td>
      <td class="number">${p.flags.under_3_seconds}</td><td class="number">${p.flags.over_half_of_the_words}</td></tr>`)}</tbody></${Table}>
    <p class="hint">Gold F1: segments that overlap those of gold items, how many items in brackets. Rewrites changed more than half of the words.</p></section>`;
}
