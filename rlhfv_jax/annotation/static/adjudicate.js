// Where two people differ: the queue, and one item with both sides and the result beside each other.

import { html, useEffect, useLayoutEffect, useReducer, useRef, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Correct } from "./correct.js";
import { Decision } from "./decision.js";
import { Dialog } from "./dialog.js";
import { Skip, Split } from "./dialogs.js";
import { setKeys } from "./keys.js";
import { Label, mark, Selection } from "./label.js";
import { Badge, paint, Shown, skipReason, typeOf } from "./marks.js";
import { Picture } from "./picture.js";
import { address } from "./places.js";
import { Segments } from "./segments.js";

const WHY = { verdict: "Different verdicts", segments: "Different segments", types: "Different types" };
const VERDICTS = { clean: "No hallucination", skipped: "Skipped", corrected: "" };
const LETTERS = "ABCDEFGHIJKLMNOPQRST";

export default function Adjudicate(given) {
  return given.item ? html`<${Case} key=${given.item} ...${given} />` : html`<${Queue} ...${given} />`;
}

function Queue({ project }) {
  const [found, setFound] = useState(null), [problem, setProblem] = useState(""), first = useRef(null);
  useEffect(() => void call("GET", `/api/projects/${project.id}/queue`).then(setFound, (error) => setProblem(error.message)), []);
  useEffect(() => first.current?.focus(), [found]);
  if (!found) return html`<p class=${problem ? "page problem" : "loading"} role="status">${problem || "Comparing…"}</p>`;
  const { open, agreed, needs_adjudication: waiting, adjudicated } = found.counts;
  return html`<div class="page">
    <h1>Adjudicate</h1>
    <dl class="counts">
      <div><dt>To decide</dt><dd>${waiting}</dd></div><div><dt>Decided</dt><dd>${adjudicated}</dd></div>
      <div><dt>Agreed</dt><dd>${agreed}</dd></div><div><dt>Not done by all yet</dt><dd>${open}</dd></div>
    </dl>
    ${waiting === 0
      ? html`<p class="hint">Nothing is waiting. Items that several people did come here where they differ in the verdict, in most segments, or in a type.</p>`
      : html`<p class="actions"><a class="button primary" ref=${first} href=${address(project.id, "adjudicate", found.items[0].item)}>Decide the first</a></p>
        <div class="scroll"><table><thead><tr><th scope="col">Item</th><th scope="col">Answer</th><th scope="col">Why</th></tr></thead>
        <tbody>${found.items.map((row) => html`<tr key=${row.item}><td><a href=${address(project.id, "adjudicate", row.item)}>${project.kind === "mhumaneval" ? `#${row.item}` : row.ext_id}</a></td>
          <td>${row.text}</td><td>${WHY[row.why]}</td></tr>`)}</tbody></table></div>`}
  </div>`;
}

function Case({ project, item, go }) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const [work, setWork] = useState(null), [problem, setProblem] = useState(""), [dialog, setDialog] = useState("");
  const editor = useRef(null), reason = useRef(null), picture = useRef(null), selection = useRef(null);
  selection.current ??= new Selection(redraw);
  useEffect(() => {
    const made = new Decision(project, redraw);
    made.open(item).then(setWork, (error) => setProblem(error.message));
    return () => ((made.changed = () => {}), setKeys({}, {}));
  }, []);
  const next = async () => {
    const found = await call("GET", `/api/projects/${project.id}/queue`).catch(() => ({ items: [] }));
    go(project.id, "adjudicate", found.items.find((row) => row.item !== item)?.item);
  };
  const acts = work && actions({ work, selection: selection.current, editor, reason, picture, next, open: setDialog });
  useLayoutEffect(() => acts && setKeys(acts.plain, acts.chords));

  if (problem) return html`<div class="page"><h1>This item cannot be decided</h1><p class="problem" role="alert">${problem}</p>
    <p class="actions"><a class="button primary" href=${address(project.id, "adjudicate")}>To the queue</a></p></div>`;
  if (!work) return html`<p class="loading" role="status">Loading…</p>`;
  const Open = { skip: SkipIt, split: Split, help: Help }[dialog];
  return html`<div class="desk review">
    <${Picture} sha=${work.item.image} alt="The image the answer is about" controls=${picture} skipKey=${project.keys.skip} />
    <div class="sheet">
      <div class="text" tabindex="-1">
        <section class="prompt"><h3>Prompt</h3><p>${work.item.prompt || html`<i>none</i>`}</p></section>
        <div class="sides">${work.sides.map((side, k) => html`<section class="side"><h3>${LETTERS[k]} ${VERDICTS[side.verdict]}</h3>
          <${Shown} project=${project} response=${work.item.response} copy=${side} />
          ${side.skip_reason && html`<p class="hint">${skipReason(project, side.skip_reason)}</p>`}</section>`)}</div>
        <${Places} work=${work} />
        ${work.labels ? html`<${Label} work=${work} selection=${selection.current} />` : html`<${Correct} work=${work} editor=${editor} label="Result" />`}
        <${Segments} work=${work} acts=${acts} open=${(name) => name === "split" && setDialog("split")} />
      </div>
      <${Foot} work=${work} acts=${acts} reason=${reason} open=${setDialog} />
    </div>
    ${Open && html`<${Open} work=${work} project=${project} acts=${acts} close=${() => setDialog("")} />`}
  </div>`;
}

// Each place where a side has something, with what each has there.
function Places({ work }) {
  const words = ({ src0, src1 }) => work.points.slice(src0, src1).join("");
  const one = (segments) => segments.length === 0 ? html`<i>as it was</i>` : segments.map((s) => html`<span class="change" style=${paint(typeOf(work.project, s.type))}><${Badge}
    type=${typeOf(work.project, s.type)} />${work.labels ? html`<mark>${words(s)}</mark>` : s.dst_text ? html`<ins>${s.dst_text}</ins>` : html`<i>removed</i>`}</span> `);
  if (!work.places.length) return null;
  return html`<section class="places"><h3 id="places">Places (${work.undecided} undecided)</h3>
    <table aria-labelledby="places"><thead><tr><th scope="col">Answer</th>${work.sides.map((_, k) => html`<th scope="col">${LETTERS[k]}</th>`)}<th scope="col">Taken</th></tr></thead>
    <tbody>${work.places.map((place, i) => html`<tr class=${i === work.place ? "current" : ""} aria-current=${i === work.place} onClick=${() => ((work.place = i), work.changed())}>
      <td>${words(place) || html`<i>nothing</i>`}</td>${place.sides.map((of) => html`<td>${one(of)}</td>`)}
      <td>${work.settled?.[i] ? (work.choices[i] === null ? "as it was" : new Set(place.sides.map((of) => JSON.stringify(of))).size === 1 ? "both" : LETTERS[work.choices[i]]) : "–"}</td></tr>`)}</tbody></table></section>`;
}

function actions({ work, selection, editor, reason, picture, next, open }) {
  const { keys, types } = work.project, labels = work.labels;
  const finish = async (verdict, skip) => (await work.decide(verdict, skip)) && next();
  const type = (key) => {
    if (labels && selection.on) return mark(work, selection, key);
    work.setType(key);
    work.nextUntyped();
  };
  const submit = () => finish(work.segments.length || work.changedAtAll ? "corrected" : "clean");
  const acts = {
    type, submit, clean: () => finish("clean"), skip: (reason_, text) => finish("skipped", { reason: reason_, text }),
    merge: () => work.merge(work.current), revert: () => work.revert(work.current), take: (side) => work.accept(side),
  };
  const plain = {
    ArrowDown: () => work.move(1), ArrowUp: () => work.move(-1), j: () => work.move(1), k: () => work.move(-1),
    r: () => reason.current?.focus(), Enter: () => (labels ? mark(work, selection, "") : editor.current?.focus()),
    [keys.clean]: acts.clean, [keys.skip]: () => open("skip"), [keys.revert]: acts.revert, [keys.zoom]: () => picture.current?.zoom(),
    [keys.next_item]: next, [keys.help]: () => open("help"), "0": () => picture.current?.reset(), "+": () => picture.current?.closer(), "-": () => picture.current?.farther(),
    ".": () => work.select(work.current + 1), ",": () => work.select(work.current - 1),
    ...Object.fromEntries(types.map((t) => [t.shortcut, () => type(t.key)])),
    a: () => work.accept(0), b: () => work.accept(1), o: () => work.accept(null), A: () => work.whole(0), B: () => work.whole(1),
  };
  if (labels)
    for (const [key, step] of [["ArrowLeft", -1], ["ArrowRight", 1]])
      for (const shift of [false, true]) plain[shift ? `Shift+${key}` : key] = () => selection.move(step, shift, work.words.length);
  else Object.assign(plain, { [keys.split]: () => work.divisible(work.current) && open("split"), [keys.merge]: acts.merge });
  const chords = {
    "Ctrl+Enter": submit, "ctrl+z": (event) => (/^(TEXTAREA|INPUT)$/.test(document.activeElement?.tagName) ? false : void work.undo(!event.shiftKey)),
    Escape: () => (labels && selection.on ? selection.clear() : document.activeElement?.blur()),
    "Alt+ArrowRight": () => work.select(work.current + 1), "Alt+ArrowLeft": () => work.select(work.current - 1),
    ...Object.fromEntries(types.map((t) => [`Alt+${t.shortcut}`, () => type(t.key)])),
  };
  return Object.assign(acts, { plain, chords });
}

function Foot({ work, acts, reason, open }) {
  const { keys, types } = work.project, n = work.segments.length;
  return html`<div class="types" role="group" aria-label="Type of the current segment">${types.map((t) => html`<button type="button" class="chip" style=${paint(t)}
      disabled=${!work.segments[work.current] && !work.labels} aria-pressed=${work.segments[work.current]?.type === t.key} onClick=${() => acts.type(t.key)}><${Badge} type=${{ ...t, label: "" }} />${t.label} <kbd>${t.shortcut}</kbd></button>`)}</div>
    <footer class="foot">
    <div class="problems" role="alert">${work.problems.map((text) => html`<p>${text}</p>`)}</div>
    <div class="line"><label for="reason">Reason <kbd>r</kbd></label><input type="text" id="reason" class="reason" ref=${reason} maxlength="1000" value=${work.reason}
      onInput=${(event) => (work.reason = event.target.value)} /><span class="tally">${n} ${n === 1 ? "segment" : "segments"}${work.untyped ? html`, <b>${work.untyped} without type</b>` : ""}</span></div>
    <div class="line">
      <button type="button" onClick=${() => acts.take(0)}>Take A <kbd>a</kbd></button><button type="button" onClick=${() => acts.take(1)}>Take B <kbd>b</kbd></button>
      <button type="button" onClick=${() => acts.take(null)}>As it was <kbd>o</kbd></button><span class="space"></span>
      <button type="button" class="quiet" onClick=${() => open("help")}>Keys <kbd>${keys.help}</kbd></button>
      <button type="button" disabled=${work.busy} onClick=${() => open("skip")}>Skip <kbd>${keys.skip}</kbd></button>
      <button type="button" disabled=${work.busy} onClick=${acts.clean}>No hallucination <kbd>${keys.clean}</kbd></button>
      <button type="button" class="primary" disabled=${work.busy} onClick=${acts.submit}>Decide <kbd>Ctrl ⏎</kbd></button>
    </div></footer>`;
}

// The desk's dialog, whose answer goes into the decision.
const SkipIt = ({ work, acts, close }) =>
  html`<${Skip} work=${{ project: work.project, pictureMissing: false, skip: async (reason, text) => void acts.skip(reason, text) }} close=${close} done=${() => {}} />`;

function Help({ project, close }) {
  const rows = [
    ["a", "Take A's words at this place"], ["b", "Take B's"], ["o", "Leave the answer's words"], ["A B", "Take everything of A, of B"], ["j k", "Next and previous place"],
    ["Enter", "Write in the result, or mark the chosen words"], ["Esc", "Leave it: these keys work again"], ["r", "Give a reason"],
    [", .", "Previous and next segment of the result"], ...project.types.map((t) => [t.shortcut, t.label]),
    [project.keys.clean, "No hallucination"], [project.keys.skip, "Skip, with a reason"], ["Ctrl Enter", "Decide"], ["Ctrl Z", "Undo"],
  ];
  return html`<${Dialog} title="Keys" close=${close} wide>
    <dl class="keys">${rows.map(([key, meaning]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${meaning}</dd></div>`)}</dl>
    <p class="actions"><button type="button" autofocus onClick=${close}>Close <kbd>Esc</kbd></button></p></${Dialog}>`;
}
