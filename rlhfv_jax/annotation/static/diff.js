// Segments of a correction, as annotation/diff.py computes them; the server's answer is the one that is stored.
// Offsets are code points: texts are arrays of them wherever a position counts.

const CJK = "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}]";
const RUN = `(?:(?!${CJK})[\\p{L}\\p{N}\\p{M}_])+`;
const SIGN = "[^\\p{Z}\\x09-\\x0d\\x1c-\\x1f\\x85][\\p{M}\u{1F3FB}-\u{1F3FF}]*";
export const PATTERN =
  `${CJK}\\p{M}*|${RUN}(?:(?:['’-]|(?<=\\p{Nd})[.,](?=\\p{Nd}))${RUN})*` +
  `|\\p{Regional_Indicator}{2}|${SIGN}(?:\\u200d${SIGN})*`;
const TOKEN = new RegExp(PATTERN, "gu");
const WORD = /[\p{L}\p{N}]/u;
const SENTENCE_ENDS = new Set(".!?…。！？");
const MERGE_OVER = 1;
const MAX_CELLS = 2 ** 20;

export const normalized = (text) => text.replace(/\r\n?/g, "\n").normalize("NFC");

// [{text, start, end}] of every word and sign.
export function tokens(text) {
  const found = [];
  let units = 0, points = 0;
  for (const match of text.matchAll(TOKEN)) {
    for (; units < match.index; points++) units += text.codePointAt(units) > 0xffff ? 2 : 1;
    const length = [...match[0]].length;
    found.push({ text: match[0], start: points, end: points + length });
  }
  return found;
}

// [{src0, src1, dst0, dst1}] in order.
export function segments(source, corrected, cuts = {}, mergeOver = MERGE_OVER) {
  const a = tokens(source), b = tokens(corrected);
  let spans = merged(changes(a.map((t) => t.text), b.map((t) => t.text)), [...source], a, mergeOver);
  const places = (cuts.splits || []).map(([s, d]) => [index(a, s), index(b, d)]).filter(([s, d]) => s >= 0 && d >= 0);
  spans = split(spans, places);
  const merges = new Set((cuts.merges || []).map(String));
  const found = [];
  for (const [a0, a1, b0, b1] of spans) {
    const [src0, src1] = characters(a, a0, a1), [dst0, dst1] = characters(b, b0, b1);
    const last = found.at(-1);
    if (last && merges.has(String([last.src1, last.dst1]))) {
      last.src1 = src1;
      last.dst1 = dst1;
    } else found.push({ src0, src1, dst0, dst1 });
  }
  return found;
}

function changes(left, right) {
  let start = 0, end = 0;
  const shorter = Math.min(left.length, right.length);
  while (start < shorter && left[start] === right[start]) start++;
  while (end < shorter - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  const n = left.length - end - start, m = right.length - end - start;
  if (!n && !m) return [];
  if (n * m > MAX_CELLS || !n || !m) return [[start, start + n, start, start + m]];
  const width = m + 1, table = new Uint16Array((n + 1) * width);
  const same = (i, j) => left[start + i] === right[start + j];
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      table[i * width + j] = same(i, j)
        ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  const spans = [];
  let i = 0, j = 0, i0 = 0, j0 = 0;
  while (i < n && j < m) {
    if (same(i, j)) {
      if (i > i0 || j > j0) spans.push([start + i0, start + i, start + j0, start + j]);
      i0 = ++i;
      j0 = ++j;
    } else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  if (n > i0 || m > j0) spans.push([start + i0, start + n, start + j0, start + m]);
  return spans;
}

function merged(spans, source, a, over) {
  const found = [];
  for (const span of spans) {
    const last = found.at(-1);
    if (last) {
      const between = a.slice(last[1], span[0]);
      const from = last[1] === 0 ? a[0].start : a[last[1] - 1].end;
      const gap = source.slice(from, a[span[0] - 1].end);
      const few = between.filter((t) => WORD.test(t.text)).length <= over;
      if (few && !gap.includes("\n") && !between.some((t) => SENTENCE_ENDS.has(t.text))) {
        last[1] = span[1];
        last[3] = span[3];
        continue;
      }
    }
    found.push([...span]);
  }
  return found;
}

function split(spans, cuts) {
  const ordered = [...cuts].sort((x, y) => x[0] - y[0] || x[1] - y[1]);
  const found = [];
  for (let [a0, a1, b0, b1] of spans) {
    for (const [i, j] of ordered) {
      const inside = a0 <= i && i <= a1 && b0 <= j && j <= b1;
      if (inside && !(i === a0 && j === b0) && !(i === a1 && j === b1)) {
        found.push([a0, i, b0, j]);
        a0 = i;
        b0 = j;
      }
    }
    found.push([a0, a1, b0, b1]);
  }
  return found;
}

function index(spans, position) {
  const count = spans.filter((t) => t.end <= position).length;
  return count < spans.length && spans[count].start < position ? -1 : count;
}

function characters(spans, start, end) {
  if (start < end) return [spans[start].start, spans[end - 1].end];
  const place = start ? spans[start - 1].end : 0;
  return [place, place];
}

// Types for new segments from old ones, as diff.py's `inherited`.
export function inherited(fresh, old) {
  return fresh.map((change) => {
    let best = 0, found = new Set();
    for (const before of old) {
      const shared = change.src0 === change.src1
        ? Number(before.src0 === before.src1 && Math.abs(before.src0 - change.src0) <= 1)
        : Math.min(change.src1, before.src1) - Math.max(change.src0, before.src0);
      if (shared > best) {
        best = shared;
        found = new Set([before.type]);
      } else if (shared === best && best > 0) found.add(before.type);
    }
    return found.size === 1 ? [...found][0] : "";
  });
}

// Cuts follow an edit: those behind it move with the text, those inside it go.
export function shifted(cuts, before, after) {
  const a = [...before], b = [...after];
  let start = 0, end = 0;
  const shorter = Math.min(a.length, b.length);
  while (start < shorter && a[start] === b[start]) start++;
  while (end < shorter - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const move = (list) =>
    (list || []).flatMap(([s, d]) => {
      if (d <= start) return [[s, d]];
      return d >= a.length - end ? [[s, d + b.length - a.length]] : [];
    });
  return { splits: move(cuts.splits), merges: move(cuts.merges) };
}
