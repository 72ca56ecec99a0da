// One item being worked on: its text, segments and types; saving that survives a lost server, tab or connection.

import { call, operationId } from "./api.js";
import { inherited, normalized, segments, shifted, tokens } from "./diff.js";

const PAUSE = 800; // ms after the last key until a draft is saved
const LONGEST_PAUSE = 15000; // between tries while the server is away
const IDLE = 30000; // a longer gap between two actions is no work
const HEARTBEAT = 300000;

const same = (a, b) => a.src0 === b.src0 && a.src1 === b.src1 && a.dst0 === b.dst0 && a.dst1 === b.dst1;

export class Work {
  constructor(project, person, changed) {
    this.project = project;
    this.person = person;
    this.changed = changed;
    this.labels = project.kind === "mhumaneval";
    this.item = null;
    this.pulse = setInterval(() => this.heartbeat(), HEARTBEAT);
  }

  // --- opening

  async open(id) {
    const item = await call("GET", `/api/items/${id}`);
    this.item = item;
    this.points = [...item.response];
    this.words = tokens(item.response);
    this.note = "";
    this.conflict = null;
    this.problems = [];
    this.confirming = null;
    this.current = 0;
    this.take(item.annotation || this.fresh());
    this.status = item.annotation ? "saved" : "new";
    this.lastAction = 0;
    this.edits = 0;
    this.savedEdits = 0;
    this.restore();
    this.changed();
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
    this.text = copy.corrected;
    this.cuts = { splits: copy.cuts?.splits || [], merges: copy.cuts?.merges || [] };
    this.segments = this.labels ? copy.segments.map((s) => ({ ...s })) : this.computed(copy.segments);
    this.current = Math.max(0, Math.min(this.current, this.segments.length - 1));
  }

  // What this browser had typed and the server never got.
  restore() {
    const draft = this.local();
    if (!draft || this.state !== "draft") return;
    if (draft.rev === this.rev) {
      this.take({ ...this.snapshot(), ...draft });
      this.note = "Restored what this browser had not saved yet.";
      this.touch();
    } else this.conflict = { mine: draft, rev: this.rev, theirs: this.snapshot(), local: true };
  }

  get key() {
    return `rlhfv:${this.person.id}:${this.item.id}`;
  }

  local() {
    try {
      return JSON.parse(localStorage.getItem(this.key));
    } catch {
      return null;
    }
  }

  keepLocal() {
    try {
      localStorage.setItem(this.key, JSON.stringify(this.snapshot()));
    } catch {
      this.note = "This browser keeps no local copy: its storage is full or shut.";
    }
  }

  snapshot() {
    const { rev, state, verdict, text, cuts, activeMs } = this;
    return {
      rev, state, verdict, corrected: text, cuts, active_ms: activeMs, skip_reason: this.skipReason,
      segments: this.segments.map((s) => ({ ...s })),
    };
  }

  // --- editing

  get corrected() {
    return this.labels ? this.item.response : normalized(this.text);
  }

  get locked() {
    return this.state !== "draft" || !!this.conflict;
  }

  get untyped() {
    return this.segments.filter((s) => !s.type).length;
  }

  computed(old) {
    const fresh = segments(this.item.response, normalized(this.text), this.cuts);
    const types = inherited(fresh, old);
    return fresh.map((s, i) => ({ ...s, type: old.find((o) => same(o, s))?.type ?? types[i] }));
  }

  setText(text) {
    if (this.locked) return;
    this.cuts = shifted(this.cuts, this.corrected, normalized(text));
    this.text = text;
    this.segments = this.computed(this.segments);
    this.current = Math.max(0, Math.min(this.current, this.segments.length - 1));
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

  // Places where segment i can be divided, as token counts on both sides; null where it cannot.
  divisible(i) {
    const s = this.segments[i];
    if (!s || this.labels) return null;
    const inside = (list, from, to) => list.filter((t) => t.start >= from && t.end <= to);
    const left = inside(this.words, s.src0, s.src1), right = inside(tokens(this.corrected), s.dst0, s.dst1);
    return left.length + right.length > 1 ? { left, right } : null;
  }

  split(i, a, b) {
    const parts = this.divisible(i), s = this.segments[i];
    if (this.locked || !parts) return;
    const place = (list, n, from) => (n ? list[n - 1].end : from);
    const cut = [place(parts.left, a, s.src0), place(parts.right, b, s.dst0)];
    this.cuts.splits.push(cut);
    const before = this.segments.length;
    this.segments = this.computed(this.segments);
    if (this.segments.length > before) this.segments[i].type = this.segments[i + 1].type = "";
    this.current = i;
    this.touch();
  }

  merge(i) {
    const s = this.segments[i];
    if (this.locked || this.labels || !this.segments[i + 1]) return;
    // A cut may lie anywhere in the white space between the two parts.
    const next = this.segments[i + 1];
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
      this.segments.splice(i, 1);
      this.current = Math.max(0, Math.min(i, this.segments.length - 1));
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
    this.segments.push({ src0, src1, dst0: src0, dst1: src1, type });
    this.segments.sort((a, b) => a.src0 - b.src0);
    this.current = this.segments.findIndex((s) => s.src0 === src0);
    this.touch();
    return true;
  }

  // --- saving

  active() {
    const now = performance.now();
    if (this.lastAction && !document.hidden) this.activeMs += Math.round(Math.min(now - this.lastAction, IDLE));
    this.lastAction = now;
  }

  touch() {
    this.active();
    this.edits++;
    this.problems = [];
    this.confirming = null;
    if (this.status !== "offline" && this.status !== "failed") this.status = "dirty";
    this.keepLocal();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), PAUSE);
    this.changed();
  }

  body(state, verdict, confirm) {
    const clean = verdict === "clean";
    return {
      base_rev: this.rev,
      op_id: operationId(),
      state,
      verdict,
      corrected: clean ? this.item.response : this.corrected,
      segments: clean ? [] : this.segments.map(({ src0, src1, dst0, dst1, type }) => ({ src0, src1, dst0, dst1, type })),
      cuts: clean ? {} : this.cuts,
      active_ms: this.activeMs,
      confirm,
    };
  }

  // Saves the draft if there is something to save. One request at a time; a lost one is sent again as it was.
  flush() {
    clearTimeout(this.timer);
    this.flushing ??= this.saveAll().finally(() => (this.flushing = null));
    return this.flushing;
  }

  async saveAll() {
    let wait = 1000;
    const id = this.item.id;
    while (this.savedEdits < this.edits && !this.conflict && this.state === "draft" && this.item.id === id) {
      const edits = this.edits, body = this.body("draft", "", false);
      for (;;) {
        if (this.status !== "offline" && this.status !== "failed") this.say("saving");
        try {
          this.saved(await call("PUT", `/api/items/${id}/annotation`, body), edits);
          break;
        } catch (error) {
          if (!this.lost(error)) return;
          await new Promise((done) => setTimeout(done, wait));
          wait = Math.min(2 * wait, LONGEST_PAUSE);
          if (this.item.id !== id || this.conflict || this.closed) return;
        }
      }
    }
  }

  saved(reply, edits) {
    this.rev = reply.rev;
    this.state = reply.state;
    this.savedEdits = edits;
    if (edits === this.edits) {
      // The server's segments are the ones that count.
      this.segments = reply.segments.map((s) => ({ ...s }));
      localStorage.removeItem(this.key);
    } else this.keepLocal();
    this.say(edits === this.edits ? "saved" : "dirty");
  }

  // Whether trying again later can help.
  lost(error) {
    if (error.status === 409) {
      const mine = this.snapshot();
      this.conflict = { mine, rev: error.values.rev, theirs: error.values.server_copy };
      this.say("conflict");
      return false;
    }
    const again = error.status === 0 || error.status >= 500;
    this.problem = error.message;
    this.say(error.status === 0 ? "offline" : "failed");
    return again;
  }

  say(status) {
    this.status = status;
    this.changed();
  }

  async settle() {
    if (this.savedEdits < this.edits) await this.flush();
    return this.savedEdits === this.edits;
  }

  // Submits; true when the item is done. Problems and questions stay on the screen.
  async submit(verdict = "corrected") {
    if (this.locked || this.submitting || this.status === "offline") return false;
    this.active();
    const confirm = this.confirming === verdict;
    if (verdict !== "clean" && this.untyped) {
      this.problems = [`${this.untyped === 1 ? "A segment has" : `${this.untyped} segments have`} no type yet.`];
      this.current = this.segments.findIndex((s) => !s.type);
      this.changed();
      return false;
    }
    this.submitting = true;
    this.changed();
    try {
      if (verdict !== "clean" && !(await this.settle())) return false;
      const edits = this.edits;
      const reply = await call("PUT", `/api/items/${this.item.id}/annotation`, this.body("submitted", verdict, confirm));
      this.verdict = verdict;
      this.saved(reply, edits);
      return true;
    } catch (error) {
      if (error.status === 422) {
        this.confirming = error.values.error === "unconfirmed" ? verdict : null;
        this.problems = error.fields.length ? error.fields.map((f) => f.detail) : [error.message];
      } else this.lost(error);
      return false;
    } finally {
      this.submitting = false;
      this.changed();
    }
  }

  async skip(reason, text) {
    if (this.locked || !(await this.settle())) return false;
    return this.change("skip", { reason, text });
  }

  reopen() {
    return this.change("reopen", {});
  }

  async change(action, values) {
    try {
      const body = { base_rev: this.rev, op_id: operationId(), ...values };
      const reply = await call("POST", `/api/items/${this.item.id}/${action}`, body);
      this.rev = reply.rev;
      this.state = reply.state;
      this.verdict = this.skipReason = "";
      this.say("saved");
      return true;
    } catch (error) {
      if (error.status === 409 || error.status === 0 || error.status >= 500) this.lost(error);
      else this.problems = [error.message];
      this.changed();
      return false;
    }
  }

  // Of two copies one is taken; the other stays in the history, or was this browser's alone.
  resolve(mine) {
    const { rev, theirs, mine: own } = this.conflict;
    this.conflict = null;
    this.take(theirs || this.fresh());
    this.rev = rev;
    if (mine && this.state === "draft") {
      this.take({ ...own, rev, state: "draft" });
      this.touch();
    } else {
      localStorage.removeItem(this.key);
      this.savedEdits = this.edits;
      this.say("saved");
    }
  }

  useRevision(copy) {
    if (this.locked) return;
    this.take({ ...copy, rev: this.rev, state: "draft" });
    this.touch();
  }

  async heartbeat() {
    if (!this.item || this.state !== "draft" || document.hidden) return;
    try {
      await call("POST", `/api/items/${this.item.id}/lease`);
    } catch {
      // The next save says what is wrong.
    }
  }

  close() {
    this.closed = true;
    clearInterval(this.pulse);
    clearTimeout(this.timer);
  }
}
