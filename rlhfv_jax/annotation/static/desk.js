// The desk: an item's image beside its text, with the keys, the types and the way to finish.

import { html, useEffect, useLayoutEffect, useReducer, useRef, useState } from "./vendor/htm-preact-standalone.module.js";
import { call } from "./api.js";
import { Correct } from "./correct.js";
import { Conflict, Guideline, Help, Skip, Split, Weights } from "./dialogs.js";
import { setKeys } from "./keys.js";
import { Label, mark, Selection } from "./label.js";
import { Badge, paint } from "./marks.js";
import { Picture } from "./picture.js";
import { address } from "./places.js";
import { Segments } from "./segments.js";
import { Work } from "./work.js";

const visited = []; // items of this page's life, for the way back
const DIALOGS = { skip: Skip, split: Split, weights: Weights, guideline: Guideline, help: Help };

export default function Desk({ project, person, item, go, refresh }) {
  const [empty, setEmpty] = useState(false);
  const [problem, setProblem] = useState("");
  const next = async (after) => {
    try {
      const found = await call("POST", `/api/projects/${project.id}/next${after ? `?after=${after}` : ""}`);
      setEmpty(!found.item);
      if (found.item) go(project.id, "work", found.item);
      else if (item) go(project.id, "work");
    } catch (error) {
      setProblem(error.message);
    }
  };
  useEffect(() => {
    if (!item && !empty) next(0);
    if (item && visited.at(-1) !== item) visited.push(item);
  }, [item]);
  const back = () => {
    if (visited.at(-1) === item) visited.pop();
    if (visited.length) go(project.id, "work", visited.at(-1));
    else go(project.id, "mine");
  };
  if (item) return html`<${Item} key=${item} ...${{ project, person, id: item, next, back, refresh }} />`;
  if (problem) return html`<p class="page problem" role="alert">${problem}</p>`;
  if (!empty) return html`<p class="loading" role="status">Looking for the next item…</p>`;
  return html`<div class="page"><h1>Nothing is left for you here</h1>
    <p>Everything is done or with somebody else. Thank you.</p>
    <p class="actions"><a class="button primary" href=${address(project.id, "mine")}>History</a>
      <a class="button" href="#/">Projects</a></p></div>`;
}

function Item({ project, person, id, next, back, refresh }) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const [work, setWork] = useState(null);
  const [problem, setProblem] = useState("");
  const [dialog, setDialog] = useState("");
  const editor = useRef(null), picture = useRef(null), selection = useRef(null);
  selection.current ??= new Selection(redraw);

  useEffect(() => {
    const made = new Work(project, person, redraw);
    made.open(id).then(setWork, (error) => setProblem(error.message));
    const hidden = () => document.hidden && made.item && made.flush();
    document.addEventListener("visibilitychange", hidden);
    return () => {
      document.removeEventListener("visibilitychange", hidden);
      setKeys({}, {});
      made.leave();
    };
  }, []);
  const done = () => (refresh().catch(() => {}), next(0));
  const acts = work && actions({ work, selection: selection.current, editor, picture, next, back, done, open });
  function open(name) {
    if (name === "split" && (work.locked || !work.divisible(work.current))) return;
    if (name === "skip" && work.locked) return;
    if (name === "weights" && (!project.weights || work.labels)) return;
    work.pictureMissing = picture.current?.missing();
    setDialog(name);
  }
  useLayoutEffect(() => acts && setKeys(acts.plain, acts.chords));

  if (problem) return html`<div class="page"><h1>This item cannot be opened</h1><p class="problem" role="alert">${problem}</p>
    <p class="actions"><button type="button" class="primary" onClick=${() => next(0)}>Next item</button></p></div>`;
  if (!work) return html`<p class="loading" role="status">Loading…</p>`;
  const Open = DIALOGS[dialog];
  return html`<div class="desk">
    <${Picture} sha=${work.item.image} alt="The image the answer is about" controls=${picture} skipKey=${project.keys.skip} />
    <div class="sheet">
      <${Banner} work=${work} acts=${acts} />
      <div class="text" tabindex="-1">
        <section class="prompt"><h3>Prompt</h3><p>${work.item.prompt || html`<i>none</i>`}</p></section>
        ${work.labels
          ? html`<${Label} work=${work} selection=${selection.current} />`
          : html`<${Correct} work=${work} editor=${editor} />`}
        <${Segments} work=${work} acts=${acts} open=${open} />
      </div>
      <${Types} work=${work} acts=${acts} />
      <${Foot} work=${work} acts=${acts} open=${open} />
    </div>
    ${Open && !work.conflict && html`<${Open} work=${work} project=${project} close=${() => setDialog("")} done=${done} />`}
    ${work.conflict && html`<${Conflict} work=${work} />`}
  </div>`;
}

// What keys and buttons do.
function actions({ work, selection, editor, picture, next, back, done, open }) {
  const { keys, types } = work.project, labels = work.labels;
  const finish = async (verdict) => {
    if (work.submit && (await work.submit(verdict))) done();
  };
  const type = (key) => {
    if (labels && selection.on) return mark(work, selection, key);
    work.setType(key);
    work.nextUntyped();
  };
  const leave = (move) => async () => {
    await Promise.race([work.flush(), new Promise((late) => setTimeout(late, 2000))]);
    move();
  };
  const acts = {
    type, submit: () => finish("corrected"), clean: () => finish("clean"),
    reopen: () => work.state !== "draft" && work.reopen(),
    next: leave(() => next(work.item.id)), back: leave(back),
    edit: () => editor.current?.focus(),
    merge: () => work.merge(work.current), revert: () => work.revert(work.current),
  };
  const named = {
    next_segment: () => work.select(work.current + 1), previous_segment: () => work.select(work.current - 1),
    merge: acts.merge, revert: acts.revert, clean: acts.clean, zoom: () => picture.current?.zoom(), next_item: acts.next, previous_item: acts.back,
  };
  for (const name of ["split", "skip", "guideline", "weights", "help"]) named[name] = () => open(name);
  const plain = {
    "+": () => picture.current?.closer(), "=": () => picture.current?.closer(), "-": () => picture.current?.farther(), 0: () => picture.current?.reset(),
    ArrowDown: named.next_segment, ArrowUp: named.previous_segment, Delete: acts.revert,
    Enter: () => (work.state !== "draft" ? acts.reopen() : labels ? mark(work, selection, "") : acts.edit()),
    ...Object.fromEntries(Object.entries(keys).map(([name, key]) => [key, named[name]])),
    ...Object.fromEntries(types.map((t) => [t.shortcut, () => type(t.key)])),
  };
  if (labels)
    for (const [key, step] of [["ArrowLeft", -1], ["ArrowRight", 1]])
      for (const shift of [false, true])
        plain[shift ? `Shift+${key}` : key] = () => selection.move(step, shift, work.words.length);
  const chords = {
    "Ctrl+Enter": acts.submit, "ctrl+s": () => void work.flush(),
    "Alt+ArrowRight": named.next_segment, "Alt+ArrowLeft": named.previous_segment,
    "ctrl+z": (event) => (document.activeElement === editor.current ? false : void work.undo(!event.shiftKey)),
    Escape: () => (labels ? selection.clear() : document.activeElement?.blur()),
    ...Object.fromEntries(types.map((t) => [`Alt+${t.shortcut}`, () => type(t.key)])),
  };
  return Object.assign(acts, { plain, chords });
}

const FINISHED = { corrected: "with corrections", clean: "without hallucination", skipped: "" };

function Banner({ work, acts }) {
  if (work.status === "offline")
    return html`<p class="banner bad" role="alert">The server cannot be reached. Your work is kept in this browser and will be sent.</p>`;
  if (work.status === "failed")
    return html`<p class="banner bad" role="alert">Not saved: ${work.problem} Your work is kept in this browser.</p>`;
  if (work.state !== "draft")
    return html`<p class="banner" role="status">${work.state === "skipped" ? "Skipped" : `Submitted ${FINISHED[work.verdict] || ""}`}.
      <button type="button" onClick=${acts.reopen}>Reopen <kbd>Enter</kbd></button></p>`;
  return work.note && html`<p class="banner" role="status">${work.note}</p>`;
}

function Types({ work, acts }) {
  const s = work.segments[work.current];
  return html`<div class="types" role="group" aria-label="Type of the current segment">${work.project.types.map(
    (t) => html`<button type="button" class="chip" style=${paint(t)} disabled=${work.locked || !(s || work.labels)}
      aria-pressed=${s?.type === t.key} onClick=${() => acts.type(t.key)}><${Badge} type=${{ ...t, label: "" }} />${t.label} <kbd>${t.shortcut}</kbd></button>`,
  )}</div>`;
}

const STATUS = {
  new: "Not changed yet", saved: "Saved", dirty: "Not saved yet", saving: "Saving…", offline: "Offline", failed: "Not saved", conflict: "Two copies",
};

function Foot({ work, acts, open }) {
  const { keys } = work.project, n = work.segments.length, asking = work.confirming;
  const shut = work.locked || work.busy || work.status === "offline";
  return html`<footer class="foot">
    <div class="problems" role="alert">${work.problems.map((text) => html`<p>${text}</p>`)}</div>
    <div class="line">
      <span class=${`state ${work.status}`} role="status">${STATUS[work.status]}${work.status === "saved" && work.rev ? `, revision ${work.rev}` : ""}</span>
      <span class="tally">${n} ${n === 1 ? "segment" : "segments"}${work.untyped ? html`, <b>${work.untyped} without type</b>` : ""}</span>
      <span class="space"></span>
      <button type="button" class="quiet" onClick=${() => open("guideline")}>Guideline <kbd>${keys.guideline}</kbd></button>
      <button type="button" class="quiet" onClick=${() => open("help")}>Keys <kbd>${keys.help}</kbd></button>
    </div>
    <div class="line">
      <button type="button" class="quiet" onClick=${acts.back} aria-label="Previous item">← <kbd>${keys.previous_item}</kbd></button>
      <button type="button" class="quiet" onClick=${acts.next} aria-label="Next item"><kbd>${keys.next_item}</kbd> →</button>
      <span class="space"></span>
      <button type="button" disabled=${shut} onClick=${() => open("skip")}>Skip <kbd>${keys.skip}</kbd></button>
      <button type="button" disabled=${shut} onClick=${acts.clean}>${asking === "clean" ? "Really no hallucination" : "No hallucination"} <kbd>${keys.clean}</kbd></button>
      <button type="button" class="primary" disabled=${shut} onClick=${acts.submit}>${asking === "corrected" ? "Submit anyway" : "Submit"} <kbd>Ctrl ⏎</kbd></button>
    </div>
  </footer>`;
}
