// The comparison that the server was started with, open or blind; names come from it only after a vote.

import { html, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Compare } from "./compare.js";

const image = (item) => (item.image === null ? null : `/api/compare/image/${item.image}`);

export default function Comparison() {
  const [data, setData] = useState(null), [problem, setProblem] = useState(""), [rates, setRates] = useState(null);
  useEffect(() => void call("GET", "/api/compare").then(setData, (error) => setProblem(error.message)), []);
  const done = data?.blind && data.items.every((item) => item.choice !== undefined);
  useEffect(() => void (done && call("GET", "/api/compare/results").then(setRates, (error) => setProblem(error.message))), [done]);
  if (!data) return html`<p class=${problem ? "page problem" : "loading"} role="status">${problem || "Loading…"}</p>`;
  const vote = async (item, choice) => {
    const told = await call("POST", "/api/compare/vote", { item: item.number, choice });
    setData((before) => ({ ...before, items: before.items.map((one) => (one.number === told.number ? told : one)) }));
  };
  return html`${problem && html`<p class="banner bad" role="alert">${problem}</p>`}
    ${rates && html`<${Results} rates=${rates} />`}
    <${Compare} data=${data} image=${image} vote=${vote} />`;
}

const percent = (v) => (v.value === null ? "–" : html`${v.value.toFixed(1)} % <span class="hint">[${v.low.toFixed(1)}, ${v.high.toFixed(1)}]</span>`);

function Results({ rates }) {
  return html`<section class="page"><h2>Results of ${rates.votes} votes by ${rates.voters}</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Results"><table><thead><tr><th scope="col">Model</th><th scope="col" class="number">Chosen</th>
      <th scope="col" class="number">Shown</th><th scope="col" class="number">Win rate</th></tr></thead>
    <tbody>${Object.entries(rates.models).map(([name, of]) => html`<tr><th scope="row">${name}</th><td class="number">${of.chosen}</td>
      <td class="number">${of.shown}</td><td class="number">${percent(of.rate)}</td></tr>`)}</tbody></table></div>
    <p class="hint">A tie (${rates.ties}) counts in equal parts for the models shown. Brackets hold 95 % intervals over questions.</p></section>`;
}
