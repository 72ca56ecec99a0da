// The list of segments, with what can be done to the current one.

import { html, useEffect, useRef } from "./vendor/htm-preact-standalone.module.js";
import { Badge, paint, typeOf } from "./marks.js";

function Words({ before, after }) {
  return html`${before ? html`<del>${before}</del>` : html`<i>nothing</i>`} → ${after ? html`<ins>${after}</ins>` : html`<i>removed</i>`}`;
}

function Row({ work, i, before, after }) {
  const type = typeOf(work.project, work.segments[i].type), current = i === work.current, row = useRef(null);
  useEffect(() => current && row.current.scrollIntoView({ block: "nearest" }), [current]);
  return html`<li ref=${row}><button type="button" class=${"row" + (current ? " current" : "")} style=${paint(type)} tabindex="-1"
    aria-current=${current} onClick=${() => work.select(i)}>
    <span class="count">${i + 1}</span><${Badge} type=${type} />
    <span class="words">${work.labels ? html`<mark>${before}</mark>` : html`<${Words} before=${before} after=${after} />`}</span>
    <span class="name">${type ? type.label : "no type"}</span></button></li>`;
}

export function Segments({ work, acts, open }) {
  const { keys } = work.project, target = [...work.corrected], n = work.segments.length, i = work.current;
  const tool = (label, key, run, possible) =>
    html`<button type="button" class="quiet" disabled=${work.locked || !possible} onClick=${run}>${label} <kbd>${key}</kbd></button>`;
  return html`<section class="segments">
    <div class="title"><h3 id="segments">Segments</h3><span class="space"></span>
      ${!work.labels && tool("Divide", keys.split, () => open("split"), work.divisible(i))}
      ${!work.labels && tool("Join", keys.merge, acts.merge, work.segments[i + 1])}
      ${tool(work.labels ? "Remove" : "Revert", keys.revert, acts.revert, n)}
      ${work.project.weights && !work.labels &&
        html`<button type="button" class="quiet" onClick=${() => open("weights")}>Weights <kbd>${keys.weights}</kbd></button>`}
    </div>
    ${n === 0
      ? html`<p class="hint">${work.labels ? "Nothing is marked yet." : "Nothing was changed yet."}</p>`
      : html`<ol aria-labelledby="segments">${work.segments.map((s, k) => html`<${Row} key=${k} work=${work} i=${k}
          before=${work.points.slice(s.src0, s.src1).join("")} after=${target.slice(s.dst0, s.dst1).join("")} />`)}</ol>`}
  </section>`;
}
