// Answers of several models side by side: the view that the application and the page in a file share.

import { html, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact-standalone.module.js";
import { changesFrom, stretches } from "./comparetext.js";
import { Dialog } from "./dialog.js";
import { setKeys } from "./keys.js";
import { Badge, paint } from "./marks.js";

const STEP = 200; // questions on the page at once
export const letter = (i) => String.fromCharCode(65 + i);
const many = (n, one, more = `${one}s`) => `${n} ${n === 1 ? one : more}`;
const UNTYPED = { key: "", label: "no type", letter: "?", color: "#4a4f57" };

// What the list is narrowed by: [label, whether an item stays].
const SHOWS = {
  all: ["All questions", () => true],
  differ: ["Answers that differ", (item) => new Set(item.answers.map((a) => a?.text)).size > 1],
  marked: ["With a marked answer", (item) => item.answers.some((a) => a?.spans?.length)],
  lacking: ["Lacking an answer", (item) => item.answers.includes(null)],
  open: ["Not voted yet", (item) => item.choice === undefined],
  voted: ["Voted", (item) => item.choice !== undefined],
};

function Text({ answer, reference, missing, types }) {
  const parts = useMemo(() => {
    const spans = answer.spans || [], all = stretches(answer.text, spans, changesFrom(reference, answer.text), reference);
    return all.map((s, i) => {
      if (s.gone !== undefined) // apart from the words around it, by one space
        return missing && html`${/\S$/.test(all[i - 1]?.text || "") && " "}<del>${s.gone}</del>${/^\S/.test(all[i + 1]?.text || "") && " "}`;
      const words = s.changed ? html`<ins>${s.text}</ins>` : s.text;
      if (s.span < 0) return words;
      const type = types.find((t) => t.key === spans[s.span][2]) || UNTYPED;
      return html`<mark class="change" style=${paint(type)}>${s.first && html`<${Badge} type=${type} />`}${words}</mark>`;
    });
  }, [answer, reference, missing, types]);
  return html`<p class="diff">${answer.text.trim() ? parts : html`<span class="hint">The answer is empty.</span>`}</p>`;
}

function Answer({ answer, place, blind, chosen, isReference, reference, missing, types }) {
  const name = answer?.name, title = blind ? letter(place) : name;
  return html`<section class=${"answer" + (isReference ? " reference" : "") + (chosen ? " chosen" : "")}>
    <h3><span>${title}</span>${blind && name && html`<span class="model">${name}</span>`}
      ${isReference && html`<span class="tag">compared with</span>`}
      ${chosen && html`<span class="tag submitted">your vote</span>`}
      ${answer?.spans && html`<span class="hint">${answer.spans.length ? `${answer.spans.length} marked` : "nothing marked"}</span>`}</h3>
    ${answer ? html`<${Text} answer=${answer} reference=${isReference ? null : reference} missing=${missing} types=${types} />`
      : html`<p class="hint">No answer.</p>`}
  </section>`;
}

function Vote({ item, vote }) {
  const [problem, setProblem] = useState("");
  const cast = (choice) => vote(item, choice).then(() => setProblem(""), (error) => setProblem(error.message));
  return html`<p class="votes" role="group" aria-label="Which answer is best?"><span class="hint">Which answer is best?</span>
    ${item.answers.map((_, i) => html`<button type="button" onClick=${() => cast(i)}>${letter(i)}</button>`)}
    <button type="button" onClick=${() => cast("tie")}>Tie</button>
    ${problem && html`<span class="problem" role="alert">${problem}</span>`}</p>`;
}

function Item({ item, number, current, blind, column, missing, types, image, vote, select, enlarge }) {
  const box = useRef(null), [broken, setBroken] = useState(false), picture = broken ? null : image(item), reference = item.answers[column]?.text ?? null;
  useLayoutEffect(() => {
    if (current < 1) return;
    box.current.scrollIntoView({ block: "start" });
    box.current.focus({ preventScroll: true });
  }, [current]);
  return html`<article class=${"compared" + (current ? " current" : "")} ref=${box} tabindex="-1" aria-label=${`Question ${item.id}`}
    onFocusIn=${select}>
    <div class="asked">
      ${picture && html`<button type="button" class="thumb" onClick=${() => enlarge(item)} aria-label=${`Enlarge the image of question ${item.id}`}>
        <img src=${picture} alt="" loading="lazy" onError=${() => setBroken(true)} /></button>`}
      <p class="hint">${number} · ${item.id}</p>
      <p class="question">${item.prompt}</p>
      ${(broken || item.broken) && html`<p class="hint">The image cannot be shown.</p>`}
    </div>
    <div class="answers">${item.answers.map((answer, i) => html`<${Answer} key=${i} answer=${answer} place=${i} blind=${blind}
      chosen=${item.choice === i} isReference=${i === column && answer !== null} reference=${reference} missing=${missing} types=${types} />`)}</div>
    ${blind && (item.choice === undefined ? html`<${Vote} item=${item} vote=${vote} />`
      : item.choice === "tie" && html`<p class="votes"><span class="tag submitted">your vote: tie</span></p>`)}
  </article>`;
}

function Keys({ close, blind, names }) {
  const rows = [["j, k", "next, previous question"], ["/", "search"], ["1 to 9", `compare with this ${blind ? "answer" : "model"}`],
    ["0", "compare with none"], ["m", "show or hide missing words"], ["z", "enlarge the image"], ["?", "these keys"]];
  if (blind) rows.splice(1, 0, [`a to ${letter(names - 1).toLowerCase()}, t`, "vote; tie"], ["n", "next question without your vote"]);
  return html`<${Dialog} title="Keys" close=${close}><dl class="keys">${rows.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
    <p class="actions"><button type="button" onClick=${close}>Close <kbd>Esc</kbd></button></p></${Dialog}>`;
}

// `data`: {title, models, names?, blind, types, items: [{id, prompt, answers: [{name?, text, spans} or null], choice?}],
// notes}; `image(item)` an address or null; `vote(item, place or "tie")` a promise; `children` stand in the bar.
export function Compare({ data, image, vote, children }) {
  const { blind, items, types } = data;
  const [query, setQuery] = useState(""), [show, setShow] = useState("all"), [type, setType] = useState("");
  const [column, setColumn] = useState(blind ? -1 : 0), [missing, setMissing] = useState(true);
  const [at, setAt] = useState({ id: null, moves: 0 }), [most, setMost] = useState(STEP);
  const [dialog, setDialog] = useState(""), [large, setLarge] = useState(null), field = useRef(null);

  const found = useMemo(() => {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    return items.filter((item) => {
      const all = [item.id, item.prompt, ...item.answers.map((a) => a?.text || "")].join("\n").toLowerCase();
      const typed = !type || item.answers.some((a) => a?.spans?.some((s) => s[2] === type));
      return typed && SHOWS[show][1](item) && words.every((word) => all.includes(word));
    });
  }, [items, query, show, type]);
  const place = found.findIndex((item) => item.id === at.id), here = found[place];
  const go = (to) => {
    const next = Math.max(0, Math.min(found.length - 1, to));
    if (next >= most) setMost(next + STEP);
    if (found[next]) setAt({ id: found[next].id, moves: at.moves + 1 });
  };
  const cast = (choice) => {
    if (!blind || !here || here.choice !== undefined || (choice !== "tie" && choice >= here.answers.length)) return false;
    vote(here, choice).catch(() => {}); // the item's own buttons say what went wrong
  };
  const columns = blind ? data.models : data.names.length;
  useLayoutEffect(() => { // before the next key can come
    const plain = {
      j: () => go(place + 1), k: () => go(place - 1), "/": () => field.current.focus(), m: () => setMissing(!missing),
      "?": () => setDialog("keys"), z: () => (here && image(here) ? setLarge(here) : false), 0: () => setColumn(-1),
    };
    for (let i = 0; i < columns; i++) plain[i + 1] = () => setColumn(i);
    if (blind) {
      for (let i = 0; i < columns; i++) plain[letter(i).toLowerCase()] = () => cast(i);
      plain.t = () => cast("tie");
      plain.n = () => {
        const rest = [...found.keys()].filter((i) => found[i].choice === undefined);
        go(rest.find((i) => i > place) ?? rest[0] ?? place);
      };
    }
    setKeys(plain, { Escape: () => (document.activeElement === field.current ? field.current.blur() : false) });
  });

  const shows = Object.entries(SHOWS).filter(([name]) => !(blind ? ["marked", "lacking"] : ["open", "voted"]).includes(name));
  const option = (value, label, chosen) => html`<option value=${value} selected=${value === chosen}>${label}</option>`;
  const voted = items.filter((item) => item.choice !== undefined).length;
  return html`<div class="compare">
    <div class="bar-of-tools" role="search">
      <h1>${data.title}</h1>
      <label><span class="hidden">Search</span><input type="text" ref=${field} placeholder="Search  /" value=${query} onInput=${(e) => setQuery(e.target.value)} /></label>
      <label><span class="hidden">Show</span><select onChange=${(e) => setShow(e.target.value)}>${shows.map(([name, [label]]) => option(name, label, show))}</select></label>
      ${!blind && types.length > 0 && html`<label><span class="hidden">Marked as</span><select onChange=${(e) => setType(e.target.value)}>
        ${option("", "Any mark or none", type)}${types.map((t) => option(t.key, `Marked: ${t.label}`, type))}</select></label>`}
      <label class="choice">Compare with <select onChange=${(e) => setColumn(Number(e.target.value))}>${option(-1, "none", column)}
        ${[...Array(columns).keys()].map((i) => option(i, blind ? letter(i) : data.names[i], column))}</select></label>
      <label class="choice"><input type="checkbox" checked=${missing} onChange=${() => setMissing(!missing)} /> missing words</label>
      <span class="space"></span>
      ${children}
      <button type="button" class="quiet" onClick=${() => setDialog("keys")}>Keys <kbd>?</kbd></button>
    </div>
    <p class="hint counts-line" role="status">${found.length === items.length ? many(items.length, "question") : `${found.length} of ${many(items.length, "question")}`}${
      ` · ${many(data.models, "model")}`}${blind && ` · ${voted} of ${items.length} voted`}${data.notes.map((note) => ` · ${note}`)}</p>
    ${!blind && types.length > 0 && html`<p class="legend">${types.map((t) => html`<span><${Badge} type=${{ ...t, label: "" }} /> ${t.label}</span>`)}
      <span class="hint">marked by people as hallucinated</span></p>`}
    ${found.slice(0, most).map((item, i) => html`<${Item} key=${item.id} item=${item} number=${i + 1} current=${item.id === at.id ? at.moves : 0}
      blind=${blind} column=${column} missing=${missing} types=${types} image=${image} vote=${vote} enlarge=${setLarge}
      select=${() => item.id !== at.id && setAt({ id: item.id, moves: -1 })} />`)}
    ${found.length === 0 && html`<p class="loading">Nothing fits this search.</p>`}
    ${found.length > most && html`<p class="actions"><button type="button" onClick=${() => setMost(most + STEP)}>Show ${Math.min(STEP, found.length - most)} more</button></p>`}
    ${dialog && html`<${Keys} close=${() => setDialog("")} blind=${blind} names=${columns} />`}
    ${large && html`<${Dialog} title=${`Question ${large.id}`} wide close=${() => setLarge(null)}><p>${large.prompt}</p>
      <img class="large" src=${image(large)} alt=${`The image of question ${large.id}`} />
      <p class="actions"><button type="button" onClick=${() => setLarge(null)}>Close <kbd>Esc</kbd></button></p></${Dialog}>`}
  </div>`;
}
