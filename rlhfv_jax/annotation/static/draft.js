// A text being corrected or labeled: its segments, their types, cuts and undo. It knows no server.

import { inherited, normalized, segments, shifted, tokens } from "./diff.js";

const MOST_UNDO = 200;
const same = (a, b) => a.src0 === b.src0 && a.src1 === b.src1 && a.dst0 === b.dst0 && a.dst1 === b.dst1;
const copies = (list) => list.map((s) => ({ ...s }));

export class Draft {
  constructor(project) {
    this.project = project;
    this.labels = project.kind === "mhumaneval";
    this.item = null;
    this.conflict = null;
    this.current = 0;
    this.past = [];
    this.future = [];
  }

  begin(item) {
    this.item = item;
    this.points = [...item.response];
    this.words = tokens(item.response);
    this.take(item.annotation || this.fresh());
  }

  fresh() {
    const text = this.item.prefill || this.item.response;
    return { rev: 0, state: "draft", corrected: text, cuts: {}, segments: [], active_ms: 0, verdict: "", skip_reason: "" };
  }

  take(copy) {
    this.rev = copy.rev;
    this.state = copy.state;
    this.verdict = copy.verdict;
    this.skipReason = copy.skip_reason;
    this.activeMs = copy.active_ms || 0;
    this.put(copy.corrected, copy.cuts, copy.segments);
  }

  put(text, cuts, old) {
    this.text = text;
    this.cuts = { splits: [...(cuts?.splits || [])], merges: [...(cuts?.merges || [])] };
    this.segments = this.labels ? copies(old) : this.computed(old);
    this.bound();
  }

  bound(i = this.current) {
    this.current = Math.max(0, Math.min(i, this.segments.length - 1));
  }

  snapshot() {
    const { rev, state, verdict, text, cuts, activeMs, skipReason } = this;
    return {
      rev, state, verdict, corrected: text, cuts, active_ms: activeMs, skip_reason: skipReason,
      segments: copies(this.segments),
    };
  }

  get corrected() {
    return this.labels ? this.item.response : normalized(this.text);
  }

  get locked() {
    return this.state !== "draft" || !!this.conflict;
  }

  get changedAtAll() {
    return this.segments.length > 0 || this.corrected !== this.item.response;
  }

  get untyped() {
    return this.segments.filter((s) => !s.type).length;
  }

  computed(old) {
    const fresh = segments(this.item.response, normalized(this.text), this.cuts);
    const types = inherited(fresh, old);
    return fresh.map((s, i) => ({ ...s, type: old.find((o) => same(o, s))?.type ?? types[i] }));
  }

  // --- undo, outside the text field, which has its own

  remember() {
    this.past.push({ text: this.text, cuts: structuredClone(this.cuts), segments: copies(this.segments) });
    if (this.past.length > MOST_UNDO) this.past.shift();
    this.future = [];
  }

  undo(back = true) {
    const [from, to] = back ? [this.past, this.future] : [this.future, this.past];
    if (this.locked || !from.length) return;
    to.push({ text: this.text, cuts: this.cuts, segments: this.segments });
    const { text, cuts, segments: kept } = from.pop();
    this.put(text, cuts, kept);
    this.touch();
  }

  // --- correcting

  setText(text) {
    if (this.locked || text === this.text) return;
    this.remember();
    this.cuts = shifted(this.cuts, this.corrected, normalized(text));
    this.text = text;
    this.segments = this.computed(this.segments);
    this.bound();
    this.touch();
  }

  // The segment at a caret, counted in UTF-16 units of the text field.
  follow(caret) {
    const at = [...normalized(this.text.slice(0, caret))].length;
    const i = this.segments.findIndex((s) => at <= s.dst1 + 1);
    if (this.segments.length) this.current = i < 0 ? this.segments.length - 1 : i;
    this.changed();
  }

  select(i) {
    if (this.segments.length) this.current = (i + this.segments.length) % this.segments.length;
    this.changed();
  }

  setType(key, i = this.current) {
    if (this.locked || !this.segments[i]) return;
    this.remember();
    this.segments[i].type = key;
    this.current = i;
    this.touch();
  }

  nextUntyped() {
    const count = this.segments.length;
    for (let k = 1; k <= count; k++) {
      const i = (this.current + k) % count;
      if (!this.segments[i].type) return this.select(i);
    }
  }

  // Words of segment i on both sides, where it can be divided between them; null where it cannot.
  divisible(i) {
    const s = this.segments[i];
    if (!s || this.labels) return null;
    const inside = (list, from, to) => list.filter((t) => t.start >= from && t.end <= to);
    const left = inside(this.words, s.src0, s.src1), right = inside(tokens(this.corrected), s.dst0, s.dst1);
    return left.length + right.length > 1 ? { left, right } : null;
  }

  // Divides segment i behind its first `a` words of the answer and `b` of the corrected text.
  split(i, a, b) {
    const parts = this.divisible(i), s = this.segments[i];
    if (this.locked || !parts) return;
    this.remember();
    const place = (list, n, from) => (n ? list[n - 1].end : from);
    this.cuts.splits.push([place(parts.left, a, s.src0), place(parts.right, b, s.dst0)]);
    const before = this.segments.length;
    this.segments = this.computed(this.segments);
    if (this.segments.length > before) this.segments[i].type = this.segments[i + 1].type = "";
    this.current = i;
    this.touch();
  }

  merge(i) {
    const s = this.segments[i], next = this.segments[i + 1];
    if (this.locked || this.labels || !next) return;
    this.remember();
    // A cut may lie anywhere in the white space between the two parts.
    const cut = (c) => c[0] >= s.src1 && c[0] <= next.src0 && c[1] >= s.dst1 && c[1] <= next.dst0;
    const kept = this.cuts.splits.filter((c) => !cut(c));
    if (kept.length < this.cuts.splits.length) this.cuts.splits = kept;
    else this.cuts.merges.push([s.src1, s.dst1]);
    this.segments = this.computed(this.segments);
    this.touch();
  }

  // The original words in place of segment i, with the white space before them.
  revert(i) {
    const s = this.segments[i];
    if (this.locked || !s) return;
    if (this.labels) {
      this.remember();
      this.segments.splice(i, 1);
      this.bound(i);
      return this.touch();
    }
    const now = tokens(this.corrected), text = [...this.corrected];
    const before = (list, at) => list.filter((t) => t.end <= at).at(-1)?.end ?? 0;
    const after = (list, at, end) => list.find((t) => t.start >= at)?.start ?? end;
    let [a0, a1, b0, b1] = [before(this.words, s.src0), s.src1, before(now, s.dst0), s.dst1];
    if (s.src0 === s.src1) a0 = a1;
    if (!a0 && s.src0 === s.src1) a1 = after(this.words, a1, this.points.length);
    if (!b0 && s.src0 === s.src1) b1 = after(now, b1, text.length);
    if (s.dst0 === s.dst1) b0 = b1;
    const original = this.points.slice(a0, a1).join("");
    this.setText(text.slice(0, b0).join("") + original + text.slice(b1).join(""));
  }

  // --- labeling

  addLabel(src0, src1, type = "") {
    if (this.locked || this.segments.some((s) => s.src0 < src1 && src0 < s.src1)) return false;
    this.remember();
    this.segments.push({ src0, src1, dst0: src0, dst1: src1, type });
    this.segments.sort((a, b) => a.src0 - b.src0);
    this.current = this.segments.findIndex((s) => s.src0 === src0);
    this.touch();
    return true;
  }
}
