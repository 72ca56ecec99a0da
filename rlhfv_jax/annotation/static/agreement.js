// How far people agree who did the same items: measures by level, and people by twos.

import { html, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { address } from "./places.js";

// "0.74 [0.60, 0.85]", or why there is no number.
const spelled = (f) => f.value === null ? html`<span class="hint">undefined (${f.undefined})</span>`
  : html`${f.value.toFixed(3)} <span class="hint">${f.low === null ? "[too few items]" : `[${f.low.toFixed(3)}, ${f.high.toFixed(3)}]`}</span>`;
const NAMES = { alpha: "Krippendorff’s α", kappa: "Cohen’s κ" };
const capital = (text) => text[0].toUpperCase() + text.slice(1);

export default function Agreement({ project }) {
  const [found, setFound] = useState(null), [problem, setProblem] = useState("");
  useEffect(() => void call("GET", `/api/projects/${project.id}/agreement`).then(setFound, (error) => setProblem(error.message)), []);
  if (!found) return html`<p class=${problem ? "page problem" : "loading"} role="status">${problem || "Comparing…"}</p>`;
  const { agreed, needs_adjudication: waiting, adjudicated, open } = found.states;
  return html`<div class="page">
    <h1>Agreement</h1>
    <dl class="counts">
      <div><dt>Items in common</dt><dd>${found.items}</dd></div><div><dt>Annotators</dt><dd>${found.annotators}</dd></div>
      <div><dt>Agreed</dt><dd>${agreed}</dd></div><div><dt>To decide</dt><dd>${waiting}</dd></div><div><dt>Decided</dt><dd>${adjudicated}</dd></div>
      <div><dt>Not done by all yet</dt><dd>${open}</dd></div>
    </dl>
    ${waiting > 0 && html`<p><a href=${address(project.id, "adjudicate")}>Decide where they differ</a></p>`}
    ${found.items === 0 ? html`<p class="hint">Figures appear when two people have finished the same item: give several people the same items at the import.</p>` : html`
    <section><h2>Measures</h2><div class="scroll" tabindex="0" role="region" aria-label="Measures"><table>
      <thead><tr><th scope="col">Of</th><th scope="col">Measure</th><th scope="col" class="number">Value</th><th scope="col" class="number">Units</th></tr></thead>
      <tbody>${found.measures.map((m, i) => html`<tr><th scope="row">${m.level === found.measures[i - 1]?.level ? html`<span class="hidden">${m.level}</span>` : capital(m.level)}</th>
        <td>${NAMES[m.measure] || capital(m.measure)}</td><td class="number">${spelled(m)}</td><td class="number">${m.n} ${m.unit}</td></tr>`)}</tbody></table></div></section>
    <section><h2>Two by two</h2><div class="scroll" tabindex="0" role="region" aria-label="Two by two"><table>
      <thead><tr><th scope="col">Annotators</th><th scope="col" class="number">Items</th><th scope="col" class="number">Same verdict</th>
        <th scope="col" class="number">κ, clean or hallucinated</th><th scope="col" class="number">Segments, overlap F1</th></tr></thead>
      <tbody>${found.pairs.map((p) => html`<tr><th scope="row">${p.annotators.join(" and ")}</th><td class="number">${p.items}</td>
        <td class="number">${((100 * p.same_verdict) / p.items).toFixed(0)} %</td><td class="number">${spelled(p.kappa)}</td><td class="number">${spelled(p.overlap_f1)}</td></tr>`)}</tbody></table></div>
      ${found.pairs_in_all > found.pairs.length && html`<p class="hint">The ${found.pairs.length} of ${found.pairs_in_all} pairs with most items.</p>`}</section>`}
    <p class="hint">Brackets hold 95 % intervals over items drawn again. Before adjudication, without skips and gold items, and of items that everybody asked has finished. An insertion marks the word before it.
      <a href=${`/api/projects/${project.id}/agreement.csv`} download>The table behind the figures (CSV)</a></p>
  </div>`;
}
