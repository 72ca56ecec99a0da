// An item at work: a draft with a server behind it; saving survives a lost server, tab or connection.

import { call, operationId } from "./api.js";
import { Draft } from "./draft.js";

const PAUSE = 800; // ms after the last change until a draft is saved
const LONGEST_PAUSE = 15000; // between tries while the server is away
const IDLE = 30000; // a longer gap between two actions is no work
const HEARTBEAT = 300000;

// Whether two copies hold the same work: then there is nothing to choose.
const work = ({ corrected, segments }) => JSON.stringify([corrected, segments.map((s) => [s.src0, s.src1, s.dst0, s.dst1, s.type])]);
const alike = (a, b) => work(a) === work(b);

export class Work extends Draft {
  constructor(project, person, changed) {
    super(project);
    this.person = person;
    this.changed = changed;
    this.problems = [];
    this.confirming = this.note = "";
    this.edits = this.savedEdits = this.lastAction = 0;
  }

  async open(id) {
    const item = await call("GET", `/api/items/${id}`);
    this.begin(item);
    this.status = item.annotation ? "saved" : "new";
    this.pulse = setInterval(() => this.heartbeat(), HEARTBEAT);
    this.active();
    this.restore();
    this.changed();
    return this;
  }

  // --- this browser's own copy

  get key() {
    return `rlhfv:${this.person.id}:${this.item.id}`;
  }

  // What this browser had typed and the server never got.
  restore() {
    let draft = null;
    try {
      draft = JSON.parse(localStorage.getItem(this.key));
    } catch {
      // an unreadable copy is no copy
    }
    if (!draft || this.state !== "draft") return;
    if (draft.rev === this.rev) {
      this.take({ ...this.snapshot(), ...draft });
      this.note = "Restored what this browser had not saved yet.";
      this.touch();
    } else if (alike(draft, this.snapshot())) this.dropLocal();
    else this.conflict = { mine: draft, rev: this.rev, theirs: this.snapshot() };
  }

  keepLocal() {
    try {
      localStorage.setItem(this.key, JSON.stringify(this.snapshot()));
    } catch {
      this.note = "This browser keeps no local copy: its storage is full or shut.";
    }
  }

  dropLocal() {
    try {
      localStorage.removeItem(this.key);
    } catch {
      // a browser that keeps nothing has nothing to drop
    }
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
    this.confirming = "";
    if (this.status !== "offline" && this.status !== "failed") this.status = "dirty";
    this.keepLocal();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), PAUSE);
    this.changed();
  }

  say(status) {
    this.status = status;
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

  // Sends until the server answers: a request that got lost goes out again as it was, with the same operation's id.
  async send(method, path, body) {
    for (let wait = 1000; ; wait = Math.min(2 * wait, LONGEST_PAUSE)) {
      try {
        return await call(method, `/api/items/${this.item.id}/${path}`, body);
      } catch (error) {
        if (error.status === 409) {
          this.conflict = { mine: this.snapshot(), rev: error.values.rev, theirs: error.values.server_copy };
          this.say("conflict");
        }
        if (error.status && error.status < 500) throw error;
        this.problem = error.message;
        this.say(error.status ? "failed" : "offline");
        await new Promise((done) => setTimeout(done, wait));
        if (this.closed) throw error;
      }
    }
  }

  // Saves the draft if there is something to save, one request at a time.
  flush() {
    clearTimeout(this.timer);
    this.flushing ??= this.saveAll().finally(() => (this.flushing = null));
    return this.flushing;
  }

  async saveAll() {
    while (this.savedEdits < this.edits && !this.locked) {
      const edits = this.edits;
      if (this.status === "dirty") this.say("saving");
      try {
        this.saved(await this.send("PUT", "annotation", this.body("draft", "", false)), edits);
      } catch (error) {
        if (error.status && error.status < 500 && error.status !== 409) {
          this.problem = error.message;
          this.say("failed");
        }
        return;
      }
    }
  }

  saved(reply, edits) {
    this.rev = reply.rev;
    this.state = reply.state;
    this.savedEdits = edits;
    if (edits === this.edits) {
      this.segments = reply.segments.map((s) => ({ ...s })); // the server's are the ones that count
      this.dropLocal();
    } else this.keepLocal();
    this.say(edits === this.edits ? "saved" : "dirty");
  }

  // --- finishing; each is true when it was done. Problems and questions stay on the screen.

  submit(verdict = "corrected") {
    const refuse = (problem, question = "") => {
      this.problems = [problem];
      this.confirming = question;
      this.changed();
      return false;
    };
    if (this.locked || this.busy || this.status === "offline") return false;
    const asked = this.confirming === verdict;
    if (verdict === "clean" && this.changedAtAll && !asked)
      return refuse("This would take back every change and segment of this answer.", "clean");
    if (verdict !== "clean" && this.untyped) {
      this.current = this.segments.findIndex((s) => !s.type);
      return refuse(this.untyped === 1 ? "A segment has no type yet." : `${this.untyped} segments have no type yet.`);
    }
    this.active();
    return this.alone(async () => {
      await this.flush();
      if (this.conflict || (verdict !== "clean" && this.savedEdits < this.edits)) return false;
      const edits = this.edits;
      const reply = await this.send("PUT", "annotation", this.body("submitted", verdict, asked));
      if (verdict === "clean") this.put(this.item.response, {}, []);
      this.verdict = verdict;
      this.saved(reply, edits);
      return true;
    }, verdict);
  }

  skip(reason, text) {
    if (this.locked) return false;
    return this.change("skip", { reason, text });
  }

  reopen() {
    return this.change("reopen", {});
  }

  change(action, values) {
    return this.alone(async () => {
      await this.flush();
      if (this.conflict) return false;
      const reply = await this.send("POST", action, { base_rev: this.rev, op_id: operationId(), ...values });
      this.rev = reply.rev;
      this.state = reply.state;
      this.verdict = "";
      this.skipReason = values.reason || "";
      this.say("saved");
      return true;
    });
  }

  async alone(task, verdict = "") {
    if (this.busy) return false;
    this.busy = true;
    this.problems = [];
    this.changed();
    try {
      return await task();
    } catch (error) {
      if (error.status !== 409) {
        this.confirming = error.values?.error === "unconfirmed" ? verdict : "";
        this.problems = error.fields?.length ? error.fields.map((f) => f.detail) : [error.message];
      }
      return false;
    } finally {
      this.busy = false;
      this.changed();
    }
  }

  // Of two copies one is taken; the other stays in the history, or was this browser's alone.
  resolve(mine) {
    const { rev, theirs, mine: own } = this.conflict;
    this.conflict = null;
    this.take(theirs || this.fresh());
    this.rev = rev;
    this.savedEdits = this.edits;
    this.status = "saved";
    if (mine && this.state === "draft") {
      this.take({ ...own, rev, state: "draft" });
      this.touch();
    } else {
      this.dropLocal();
      this.changed();
    }
  }

  // A revision of the history becomes the draft.
  async useRevision(copy) {
    if (this.state !== "draft" && !(await this.reopen())) return false;
    if (this.locked) return false;
    this.take({ ...copy, rev: this.rev, state: "draft", active_ms: this.activeMs });
    this.touch();
    await this.flush();
    return this.savedEdits === this.edits;
  }

  async heartbeat() {
    if (this.state !== "draft" || document.hidden) return;
    try {
      await call("POST", `/api/items/${this.item.id}/lease`);
    } catch {
      // The next save says what is wrong.
    }
  }

  // Leaving the screen: what is unsaved gets one try; this browser keeps it in any case.
  leave() {
    clearInterval(this.pulse);
    if (this.item && this.savedEdits < this.edits) this.flush();
    clearTimeout(this.timer);
    this.closed = true;
    this.changed = () => {};
  }
}
