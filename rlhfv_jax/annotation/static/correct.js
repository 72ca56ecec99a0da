// The text field with the answer in it, and what changed.

import { html } from "./vendor/htm-preact-standalone.module.js";
import { DiffLine } from "./marks.js";

export function Correct({ work, editor, label = "Answer, corrected in place" }) {
  const caret = () => document.activeElement === editor.current && work.follow(editor.current.selectionEnd);
  const whiteSpace = work.segments.length === 0 && work.corrected !== work.item.response;
  return html`
    <section class="answer"><h3><label for="editor">${label}</label></h3>
      <textarea id="editor" ref=${editor} rows="5" spellcheck="true" readonly=${work.locked} value=${work.text}
        onInput=${(event) => (work.setText(event.target.value), caret())} onKeyUp=${(event) => !event.altKey && /^Arrow|^Home|^End/.test(event.key) && caret()}
        onClick=${caret}></textarea>
    </section>
    <section class="changes"><h3>Changes</h3>
      <${DiffLine} project=${work.project} response=${work.item.response} corrected=${work.corrected} segments=${work.segments}
        current=${work.current} select=${(i) => work.select(i)} />
      ${whiteSpace && html`<p class="hint">Only white space differs, which is no segment.</p>`}
    </section>`;
}
