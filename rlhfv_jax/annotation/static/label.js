// An answer whose words are marked: by dragging, by two taps, or by the arrow keys.

import { html, useRef } from "./vendor/htm-preact-standalone.module.js";
import { Badge, paint, typeOf } from "./marks.js";

// The selection: words from `anchor` to `head`, both included. It is put away (`on`) but not forgotten once it was
// marked, so that the arrow keys go on from there.
export class Selection {
  constructor(changed) {
    this.changed = changed;
    this.head = this.anchor = -1;
    this.on = false;
  }

  get range() {
    return [Math.min(this.anchor, this.head), Math.max(this.anchor, this.head)];
  }

  move(step, extend, count) {
    if (!count) return;
    this.head = Math.max(0, Math.min(count - 1, this.head + step));
    if (!extend || !this.on) this.anchor = this.head;
    this.on = true;
    this.changed();
  }

  set(anchor, head) {
    [this.anchor, this.head, this.on] = [anchor, head, true];
    this.changed();
  }

  clear() {
    this.on = false;
    this.changed();
  }
}

export function mark(work, selection, type) {
  const [from, to] = selection.range;
  if (!selection.on || !work.words.length) return false;
  const done = work.addLabel(work.words[from].start, work.words[to].end, type);
  if (done) selection.clear();
  else {
    work.problems = ["Two segments would overlap."];
    work.changed();
  }
  return done;
}

export function Label({ work, selection }) {
  const dragging = useRef(false);
  const [from, to] = selection.on ? selection.range : [-1, -1];
  const inside = (word) => work.segments.findIndex((s) => s.src0 <= word.start && word.end <= s.src1);
  const wordAt = (event) => {
    const element = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-word]");
    return element ? Number(element.dataset.word) : -1;
  };
  const down = (event) => {
    const i = wordAt(event);
    if (i < 0 || event.button) return;
    const segment = inside(work.words[i]);
    if (segment >= 0) return work.select(segment);
    if (event.pointerType !== "mouse") {
      const extends_ = selection.on && selection.anchor === selection.head && selection.head !== i;
      return selection.set(extends_ ? selection.anchor : i, i);
    }
    event.preventDefault();
    dragging.current = true;
    if (event.shiftKey && selection.on) selection.set(selection.anchor, i);
    else selection.set(i, i);
  };
  const drag = (event) => {
    const i = dragging.current ? wordAt(event) : -1;
    if (i >= 0 && i !== selection.head) selection.set(selection.anchor, i);
  };
  const up = () => (dragging.current = false);

  const shown = [];
  let at = 0;
  work.words.forEach((word, i) => {
    const segment = inside(word), before = i ? inside(work.words[i - 1]) : -1, joined = segment >= 0 && segment === before;
    const gap = work.points.slice(at, word.start).join("");
    const picked = i >= from && i <= to, type = segment >= 0 && typeOf(work.project, work.segments[segment].type);
    const look = (segment < 0 ? "" : " marked") + (segment >= 0 && !type ? " none" : "") +
      (segment >= 0 && segment === work.current ? " current" : "");
    if (gap) shown.push(joined ? html`<span class=${"gap" + look} style=${paint(type)}>${gap}</span>` : html`<span class=${i > from && i <= to ? "gap picked" : "gap"}>${gap}</span>`);
    shown.push(html`<span role="option" id=${`word-${i}`} data-word=${i} aria-selected=${picked || segment >= 0} style=${paint(type)}
      class=${"word" + look + (picked ? " picked" : "") + (selection.on && i === selection.head ? " caret" : "")}>${
      segment >= 0 && !joined ? html`<${Badge} type=${type} />` : null}${work.points.slice(word.start, word.end).join("")}</span>`);
    at = word.end;
  });
  return html`
    <section class="answer"><h3 id="answer">Answer</h3>
      <div class="words-of-answer" role="listbox" aria-multiselectable="true" aria-labelledby="answer" tabindex="0"
        aria-activedescendant=${selection.on ? `word-${selection.head}` : null} onPointerDown=${down} onPointerMove=${drag}
        onPointerUp=${up} onPointerLeave=${up}>${shown}</div>
      <p class="hint">Drag over words, or tap the first and the last, or use the arrow keys and <kbd>Shift</kbd>. Then pick a type.</p>
    </section>`;
}
