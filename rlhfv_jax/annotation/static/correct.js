// The text field with the answer in it, what changed, and the segments.

import { html, useEffect, useRef } from "./vendor/htm-preact-standalone.module.js";
import { Badge, DiffLine, paint, typeOf } from "./marks.js";

function Row({ work, i, texts }) {
  const s = work.segments[i], type = typeOf(work.project, s.type), [before, after] = texts;
  const row = useRef(null), current = i === work.current;
  useEffect(() => current && row.current.scrollIntoView({ block: "nearest" }), [current]);
  return html`<li ref=${row}><button type="button" class=${"row" + (current ? " current" : "")} style=${paint(type)}
    aria-current=${current} tabindex="-1" onClick=${() => work.select(i)}>
    <span class="count">${i + 1}</span><${Badge} type=${type} />
    <span class="words">${before ? html`<del>${before}</del>` : html`<i>nothing</i>`}<span aria-label="became"> → </span>${
      after ? html`<ins>${after}</ins>` : html`<i>removed</i>`}</span>
    <span class="name">${type ? type.label : "no type"}</span>
  </button></li>`;
}

export function Segments({ work }) {
  const target = [...work.corrected];
  const texts = work.segments.map((s) => [
    work.points.slice(s.src0, s.src1).join(""),
    work.labels ? "" : target.slice(s.dst0, s.dst1).join(""),
  ]);
  return html`<section class="segments"><h3 id="segments">Segments</h3>
    ${work.segments.length === 0
      ? html`<p class="hint">${work.labels ? "Nothing is marked yet." : "Nothing was changed yet."}</p>`
      : html`<ol aria-labelledby="segments">${texts.map((t, i) => work.labels
          ? html`<${LabelRow} key=${i} work=${work} i=${i} text=${t[0]} />`
          : html`<${Row} key=${i} work=${work} i=${i} texts=${t} />`)}</ol>`}
  </section>`;
}

function LabelRow({ work, i, text }) {
  const type = typeOf(work.project, work.segments[i].type), current = i === work.current;
  return html`<li><button type="button" class=${"row" + (current ? " current" : "")} style=${paint(type)} tabindex="-1"
    aria-current=${current} onClick=${() => work.select(i)}>
    <span class="count">${i + 1}</span><${Badge} type=${type} /><span class="words"><mark>${text}</mark></span>
    <span class="name">${type ? type.label : "no type"}</span></button></li>`;
}

export function Correct({ work, editor }) {
  const caret = () => document.activeElement === editor.current && work.follow(editor.current.selectionEnd);
  const whiteSpace = work.segments.length === 0 && work.corrected !== work.item.response;
  return html`
    <section class="answer"><h3><label for="editor">Answer, corrected in place</label></h3>
      <textarea id="editor" ref=${editor} rows="5" spellcheck="true" readonly=${work.locked} value=${work.text}
        onInput=${(event) => (work.setText(event.target.value), caret())} onKeyUp=${(event) => /^Arrow|^Home|^End/.test(event.key) && caret()}
        onClick=${caret}></textarea>
    </section>
    <section class="changes"><h3>Changes</h3>
      <${DiffLine} project=${work.project} response=${work.item.response} corrected=${work.corrected} segments=${work.segments}
        current=${work.current} select=${(i) => work.select(i)} />
      ${whiteSpace && html`<p class="hint">Only white space differs, which is no segment.</p>`}
    </section>
    <${Segments} work=${work} />`;
}
