// A reviewer's decision in the making: the answer, with the segments of either side taken over one place at a time.

import { call, operationId } from "./api.js";
import { segments as compared, tokens } from "./diff.js";
import { Draft } from "./draft.js";

const overlap = (a, b) => a.src0 < b.src1 && b.src0 < a.src1;
const touch = (a, b) => (a.src0 === a.src1 || b.src0 === b.src1 ? a.src0 <= b.src1 && b.src0 <= a.src1 : overlap(a, b));

// Places of the answer where a side has something: [{src0, src1, sides: [segments of A, of B, ...]}], in order.
// Segments that overlap, or an insertion that touches another, are one place.
export function places(sides) {
  const all = sides.flatMap((side, k) => side.segments.map((segment) => ({ ...segment, side: k })));
  all.sort((a, b) => a.src0 - b.src0 || a.src1 - b.src1);
  const found = [];
  for (const segment of all) {
    const last = found.at(-1);
    if (last && touch(last, segment)) last.src1 = Math.max(last.src1, segment.src1);
    else found.push({ src0: segment.src0, src1: segment.src1, sides: sides.map(() => []) });
    found.at(-1).sides[segment.side].push(segment);
  }
  return found;
}

// How many words and signs lie in [from, to).
const within = (list, from, to) => list.filter((t) => t.start >= from && t.end <= to).length;

// The text and segments of choices: for each place a side's number, or null for the words of the answer. White space
// before and behind a place is the side's too, for that is where words were put in or taken out.
export function composed(response, sides, found, choices) {
  const answer = [...response], words = tokens(response);
  const texts = sides.map((side) => [...side.corrected]), lists = sides.map((side) => tokens(side.corrected));
  const more = sides.map(() => 0); // by how many words a side is ahead of the answer
  let out = [], at = 0;
  const kept = [];
  found.forEach((place, i) => {
    const ahead = [...more];
    place.sides.forEach((of, k) => of.forEach((s) => (more[k] += within(lists[k], s.dst0, s.dst1) - within(words, s.src0, s.src1))));
    const k = choices[i];
    if (k === null || !place.sides[k].length) return;
    const before = words.filter((w) => w.end <= place.src0).length, next = words.findIndex((w) => w.start >= place.src1);
    const after = next < 0 ? words.length : next, now = lists[k], first = before + ahead[k], last = after + more[k];
    const from = before ? words[before - 1].end : 0, to = after < words.length ? words[after].start : answer.length;
    let start = first ? now[first - 1].end : 0, end = last < now.length ? now[last].start : texts[k].length;
    let [lead, tail] = [[], []];
    if (!first && before && from >= at) { // the side begins here, the result does not
      start = now[0]?.start ?? 0;
      lead = answer.slice(from, words[before]?.start ?? from);
    }
    if (last === now.length && after < words.length) { // the side ends here, the result does not
      end = last ? now[last - 1].end : 0;
      tail = answer.slice(after ? words[after - 1].end : 0, to);
    }
    if (from < at) start = first < last ? now[first].start : end; // the place before had this white space
    out = out.concat(answer.slice(at, Math.max(at, from)), lead);
    const moved = out.length - start;
    kept.push(...place.sides[k].map((s) => ({ src0: s.src0, src1: s.src1, dst0: s.dst0 + moved, dst1: s.dst1 + moved, type: s.type })));
    out = out.concat(texts[k].slice(start, end), tail);
    at = Math.max(at, to);
  });
  const corrected = out.concat(answer.slice(at)).join("");
  return { corrected, cuts: cutsFor(response, corrected, kept), segments: kept };
}

// Cuts with which the compared texts fall into the wanted segments.
function cutsFor(response, corrected, wanted) {
  const fresh = compared(response, corrected);
  const lies = (s, c, from, to) => s[from] === s[to] || (s[from] >= c[from] && s[to] <= c[to]); // what is empty may lie a space off
  const inside = (s, c) => lies(s, c, "src0", "src1") && lies(s, c, "dst0", "dst1");
  const splits = fresh.flatMap((c) => wanted.filter((s) => inside(s, c)).slice(1).map((s) => [s.src0, s.dst0]));
  const merges = wanted.flatMap((s) => fresh.filter((c) => inside(c, s)).slice(0, -1).map((c) => [c.src1, c.dst1]));
  return { splits, merges };
}

export class Decision extends Draft {
  constructor(project, changed) {
    super({ ...project, weights: false });
    this.changed = changed;
    this.problems = [];
    this.reason = "";
    this.place = 0;
    this.status = "new";
    this.confirming = "";
  }

  touch() {
    this.problems = [];
    this.changed();
  }

  async open(id) {
    const found = await call("GET", `/api/projects/${this.project.id}/adjudicate/${id}`);
    Object.assign(this, { id, sides: found.sides, revisions: found.revisions, why: found.why, itemState: found.state });
    this.places = places(found.sides);
    this.choices = this.places.map(() => null);
    this.base = found.decision?.rev || 0;
    this.reason = found.decision?.reason || "";
    this.begin({ ...found.item, annotation: null, prefill: null });
    if (found.decision) {
      this.made = ""; // all of it counts as made by hand
      this.put(found.decision.corrected, found.decision.cuts, found.decision.segments);
    }
    else this.takeAgreed();
    this.changed();
    return this;
  }

  // What the sides have in common needs nobody's decision.
  takeAgreed() {
    const alike = ({ sides }) => new Set(sides.map((of) => JSON.stringify(of.map((s) => [s.src0, s.src1, s.dst_text, s.type])))).size === 1;
    this.choices = this.places.map((place) => (alike(place) ? 0 : null));
    this.settled = this.places.map(alike);
    this.place = Math.max(0, this.settled.indexOf(false));
    this.compose(false);
  }

  // Whether the result was written or typed by hand since it was last put together.
  get byHand() {
    return this.made !== undefined && this.made !== JSON.stringify([this.text, this.segments]);
  }

  // False where that would take back what was done by hand, which is asked about once.
  may(what) {
    if (!this.byHand || this.confirming === what) return true;
    this.confirming = what;
    this.problems = ["This takes back what was changed by hand in the result. Once more to do it."];
    this.changed();
    return false;
  }

  compose(remember = true) {
    if (remember) this.remember();
    if (this.labels) {
      const kept = this.places.flatMap((place, i) => (this.choices[i] === null ? [] : place.sides[this.choices[i]]));
      this.put(this.item.response, {}, kept);
    } else {
      const made = composed(this.item.response, this.sides, this.places, this.choices);
      this.put(made.corrected, made.cuts, made.segments);
    }
    this.made = JSON.stringify([this.text, this.segments]);
    this.confirming = "";
  }

  // Takes a side's words at the current place (null: the answer's), and goes to the next one.
  accept(side) {
    if (!this.places.length) return this.whole(side);
    if (!this.may(`accept ${side}`)) return;
    this.settled ??= this.places.map(() => false);
    this.choices[this.place] = side;
    this.settled[this.place] = true;
    this.compose();
    this.move(1);
    this.touch();
  }

  // Everything of one side.
  whole(side) {
    if ((side !== null && !this.sides[side]) || !this.may(`whole ${side}`)) return;
    this.choices = this.places.map(() => side);
    this.settled = this.places.map(() => true);
    this.compose();
    this.touch();
  }

  move(step) {
    if (this.places.length) this.place = Math.max(0, Math.min(this.places.length - 1, this.place + step));
    this.changed();
  }

  get undecided() {
    return this.settled?.filter((done) => !done).length || 0;
  }

  // Sends the decision: "corrected" also stands for labeled; true when it is stored.
  async decide(verdict, skip) {
    if (this.busy) return false;
    const clean = verdict === "clean";
    if (clean && this.changedAtAll && this.confirming !== "clean") {
      this.confirming = "clean";
      this.problems = ["This would take back every segment of the result."];
      this.changed();
      return false;
    }
    this.busy = true;
    this.changed();
    try {
      await call("POST", `/api/projects/${this.project.id}/adjudicate/${this.id}`, {
        base_rev: this.base, op_id: operationId(), revisions: this.revisions, reason: this.reason, verdict, skip,
        corrected: clean ? this.item.response : this.corrected, cuts: clean ? {} : this.cuts,
        segments: clean ? [] : this.segments.map(({ src0, src1, dst0, dst1, type }) => ({ src0, src1, dst0, dst1, type })),
      });
      return true;
    } catch (error) {
      this.problems = error.fields?.length ? error.fields.map((f) => f.detail) : [error.message];
      return false;
    } finally {
      this.busy = false;
      this.changed();
    }
  }
}
