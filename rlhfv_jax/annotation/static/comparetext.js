// An answer in stretches: what differs from another answer, and what people marked in it.

import { segments } from "./diff.js";

// Segments from the reference's text to this one; none without a reference.
export const changesFrom = (reference, text) => (reference === null ? [] : segments(reference, text));

// [{text, changed, span, first}] of the whole text in order, and {gone} where the reference has words that it lacks.
// `span` is the place of the span in `spans` that covers the stretch, `first` whether the span begins there.
export function stretches(text, spans, changes, reference) {
  const points = [...text], before = reference === null ? [] : [...reference];
  const cuts = new Set([0, points.length]);
  for (const [start, end] of spans) cuts.add(start).add(end);
  for (const c of changes) cuts.add(c.dst0).add(c.dst1);
  const ordered = [...cuts].sort((a, b) => a - b), found = [];
  for (let i = 0; i < ordered.length; i++) {
    const from = ordered[i], to = ordered[i + 1];
    for (const c of changes) if (c.dst0 === from && c.src0 < c.src1) found.push({ gone: before.slice(c.src0, c.src1).join("") });
    if (to === undefined) break;
    const span = spans.findIndex(([start, end]) => start <= from && to <= end);
    const changed = changes.some((c) => c.dst0 <= from && to <= c.dst1);
    found.push({ text: points.slice(from, to).join(""), changed, span, first: span >= 0 && spans[span][0] === from });
  }
  return found;
}
