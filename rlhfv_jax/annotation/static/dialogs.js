// Dialogs over the desk: why skip, where to split, which copy, what training will weigh, which keys there are.

import { html, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Dialog } from "./dialog.js";
import { Shown } from "./marks.js";

export function Skip({ work, close, done }) {
  const missing = work.pictureMissing;
  const [reason, setReason] = useState(missing ? "image_missing" : "");
  const [text, setText] = useState("");
  const send = async (event) => {
    event.preventDefault();
    close();
    if (await work.skip(reason, text)) done();
  };
  return html`<${Dialog} title="Why skip this item?" close=${close}>
    <form onSubmit=${send}>
      ${work.project.skip_reasons.map(([key, label], i) => html`<label class="choice"><input type="radio" name="reason" value=${key}
        checked=${reason === key} autofocus=${i === 0} onChange=${() => setReason(key)} /> ${label}</label>`)}
      ${reason === "other" && html`<label for="why">The reason</label>
        <input type="text" id="why" maxlength="1000" value=${text} onInput=${(event) => setText(event.target.value)} />`}
      <p class="actions"><button class="primary" disabled=${!reason || (reason === "other" && !text.trim())}>Skip</button>
        <button type="button" onClick=${close}>Cancel <kbd>Esc</kbd></button></p>
    </form></${Dialog}>`;
}

export function Split({ work, close }) {
  const i = work.current, { left, right } = work.divisible(i);
  const even = left.length === right.length;
  const [[a, b], set] = useState([Math.min(1, left.length), even && left.length > 1 ? 1 : 0]);
  const possible = a + b > 0 && a + b < left.length + right.length;
  const bounded = (x, y) => set([Math.max(0, Math.min(left.length, x)), Math.max(0, Math.min(right.length, y))]);
  const keys = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      if (event.shiftKey) bounded(a, b + step);
      else bounded(a + step, even && a === b ? b + step : b);
    } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      finish();
    }
  };
  const finish = () => {
    if (!possible) return;
    close();
    work.split(i, a, b);
  };
  const line = (label, list, n, put) => html`<p class="split-line"><span class="hint">${label}</span> ${list.length === 0 ? html`<i>nothing</i>` : null}
    ${list.map((word, k) => html`${k === n && html`<b class="cut" aria-label="divided here">|</b>`}
      <button type="button" tabindex="-1" onClick=${() => put(k + 1)}>${word.text}</button>`)}${n === list.length && html`<b class="cut" aria-label="divided here">|</b>`}</p>`;
  return html`<${Dialog} title="Divide the segment" close=${close}>
    <div class="split" tabindex="0" onKeyDown=${keys} ref=${(element) => element && !element.contains(document.activeElement) && element.focus()} role="group" aria-label="Where to divide">
      ${line("Answer", left, a, (n) => bounded(n, b))}${line("Corrected", right, b, (n) => bounded(a, n))}
      <p class="hint"><kbd>←</kbd> <kbd>→</kbd> move the cut, with <kbd>Shift</kbd> only that of the corrected text; <kbd>Enter</kbd> divides.</p>
      <p class="hidden" role="status">${`${a} of ${left.length} words of the answer, ${b} of ${right.length} of the correction before the cut`}</p>
      <p class="actions"><button type="button" class="primary" disabled=${!possible} onClick=${finish}>Divide</button>
        <button type="button" onClick=${close}>Cancel <kbd>Esc</kbd></button></p>
    </div></${Dialog}>`;
}

export function Conflict({ work }) {
  const { mine, theirs } = work.conflict, response = work.item.response;
  const other = theirs || work.fresh();
  return html`<${Dialog} title="Two copies of your work" wide>
    <p>This item was saved from another tab or browser after this one had read it. Which copy shall stay?</p>
    <div class="copies">
      <section><h3>In this browser</h3><${Shown} project=${work.project} response=${response} copy=${mine} /></section>
      <section><h3>On the server: revision ${work.conflict.rev}, ${other.state}</h3><${Shown} project=${work.project} response=${response} copy=${other} /></section>
    </div>
    ${other.state !== "draft" && html`<p class="hint">The server's copy is finished; reopen it afterwards to change it.</p>`}
    <p class="actions"><button type="button" class="primary" disabled=${other.state !== "draft"} onClick=${() => work.resolve(true)}>Keep this browser's</button>
      <button type="button" onClick=${() => work.resolve(false)}>Take the server's</button></p>
  </${Dialog}>`;
}

export function Weights({ work, close }) {
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    call("POST", `/api/items/${work.item.id}/weights`, work.body("draft", "", false)).then(setFound, (error) => setProblem(error.message));
  }, []);
  const line = (list, gamma) => html`<p class="tokens">${list.map(([text, weight]) =>
    weight === gamma ? html`<b title=${`weight ${weight}`}>${text}</b>` : text)}</p>`;
  const words = (list) => list.map((i) => i + 1).join(", ");
  return html`<${Dialog} title="What training will weigh" close=${close} wide>
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    ${!found && !problem && html`<p class="hint">Loading…</p>`}
    ${found && html`
      <p class="hint">Marked tokens weigh ${found.gamma}, the others 1.</p>
      <h3>Corrected (chosen)</h3>${line(found.chosen, found.gamma)}
      <h3>Answer (rejected)</h3>${line(found.rejected, found.gamma)}
      ${found.unweighted.length > 0 && html`<p class="problem">Segment ${words(found.unweighted)}: no token spells it, so it has no weight.</p>`}
      ${found.released_unweighted.length > 0 && html`<p class="hint">Segment ${words(found.released_unweighted)} would have no weight in the paper's released script, which looks at replaced words alone.</p>`}`}
    <p class="actions"><button type="button" autofocus onClick=${close}>Close <kbd>Esc</kbd></button></p></${Dialog}>`;
}

export function Guideline({ project, close }) {
  return html`<${Dialog} title="Guideline" close=${close}>
    ${project.guideline.split("\n").map((line) => html`<p>${line}</p>`)}
    <p class="actions"><button type="button" autofocus onClick=${close}>Close <kbd>Esc</kbd></button></p></${Dialog}>`;
}

const MEANINGS = {
  next_segment: "Next segment", previous_segment: "Previous segment", split: "Divide the segment", merge: "Join with the next segment",
  revert: "Take the segment back", clean: "No hallucination", skip: "Skip, with a reason", guideline: "Guideline", zoom: "Zoom in and out",
  next_item: "Next item", previous_item: "Previous item", weights: "What training will weigh", help: "These keys",
};
const CORRECTING_ONLY = ["split", "merge", "weights"];

export function Help({ project, close }) {
  const labels = project.kind === "mhumaneval";
  const rows = [
    ...project.types.map((t) => [t.shortcut, t.label]),
    ...(labels
      ? [["← →", "Choose a word"], ["Shift ← →", "Choose several"], ["Enter", "Mark the chosen words"], ["Esc", "Choose none"]]
      : [["Enter", "Write in the answer"], ["Esc", "Leave it: these keys work again"], ["Alt 1…", "A type while writing"], ["Alt ← →", "A segment while writing"]]),
    ...Object.entries(project.keys).filter(([name]) => !labels || !CORRECTING_ONLY.includes(name))
      .filter(([name]) => name !== "weights" || project.weights).map(([name, key]) => [key, MEANINGS[name]]),
    ["Ctrl Enter", "Submit"], ["Ctrl S", "Save now"], ["Ctrl Z", "Undo (with Shift: redo)"], ["+ − 0", "Zoom in, out, fit"],
  ];
  return html`<${Dialog} title="Keys" close=${close} wide>
    <dl class="keys">${rows.map(([key, meaning]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${meaning}</dd></div>`)}</dl>
    <p class="actions"><button type="button" autofocus onClick=${close}>Close <kbd>Esc</kbd></button></p></${Dialog}>`;
}
