// A comparison in a file of its own: its data stand in the page, votes stay in this browser until they are downloaded.

import { html, render, useState } from "./vendor/htm-preact-standalone.module.js";
import { Compare } from "./compare.js";

const source = JSON.parse(document.getElementById("data").textContent);
const image = (item) => source.images[item.image] ?? null;
const MEMORY = `rlhfv:compare:${source.digest}`;
const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");

// {voter, orders: {question: [places]}, votes: {question: place or "tie"}}; places count in the data's own order.
function remembered() {
  try {
    const kept = JSON.parse(localStorage.getItem(MEMORY));
    if (kept?.voter && kept.orders && kept.votes) return kept;
  } catch {
    // a browser that keeps nothing: votes last as long as the page
  }
  const orders = {};
  for (const item of source.items) orders[item.id] = shuffled(item.answers.flatMap((a, i) => (a ? [i] : [])));
  return { voter: `page-${hex(8)}`, orders, votes: {} };
}

function shuffled(list) {
  const found = list.map((value) => [crypto.getRandomValues(new Uint32Array(1))[0], value]);
  return found.sort(([a], [b]) => a - b).map(([, value]) => value);
}

function keep(ballot) {
  try {
    localStorage.setItem(MEMORY, JSON.stringify(ballot));
  } catch {
    // as above
  }
}

const named = (item) => item.answers.map((answer, i) => answer && { ...answer, name: source.names[i] });
const open = { ...source, blind: false, models: source.names.length, items: source.items.map((item) => ({ ...item, answers: named(item) })) };

function veiled(ballot) {
  const items = source.items.filter((item) => ballot.orders[item.id]?.length > 1).map((item) => {
    const order = ballot.orders[item.id], vote = ballot.votes[item.id], answers = named(item);
    if (vote === undefined) return { ...item, answers: order.map((i) => ({ text: answers[i].text, spans: null })) };
    return { ...item, answers: order.map((i) => answers[i]), choice: vote === "tie" ? "tie" : order.indexOf(vote) };
  });
  return { ...source, names: null, notes: [], blind: true, models: source.names.length, items };
}

function lines(ballot) {
  return Object.entries(ballot.votes).map(([question, vote]) => JSON.stringify({
    comparison: source.digest, question_id: question, voter: ballot.voter, choice: vote === "tie" ? "tie" : source.names[vote],
    shown: ballot.orders[question].map((i) => source.names[i]),
  }) + "\n").join("");
}

function download(text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.download = "votes.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function Page() {
  const [blind, setBlind] = useState(false), [ballot, setBallot] = useState(remembered);
  const vote = async (item, choice) => {
    const votes = { ...ballot.votes, [item.id]: choice === "tie" ? "tie" : ballot.orders[item.id][choice] };
    const next = { ...ballot, votes };
    keep(next);
    setBallot(next);
  };
  const count = Object.keys(ballot.votes).length;
  return html`<main><${Compare} key=${blind} data=${blind ? veiled(ballot) : open} image=${image} vote=${vote}>
    <button type="button" aria-pressed=${blind} onClick=${() => setBlind(!blind)}>${blind ? "Show the models" : "Vote blindly"}</button>
    ${count > 0 && html`<button type="button" onClick=${() => download(lines(ballot))}>Download ${count} ${count === 1 ? "vote" : "votes"}</button>`}
  </${Compare}></main>`;
}

render(html`<${Page} />`, document.getElementById("app"));
