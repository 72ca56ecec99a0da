// How a segment looks everywhere: a color and a letter of its type, struck out and underlined words.

import { html } from "./vendor/htm-preact-standalone.module.js";

// Black or white, whichever is easier to read on the color.
function ink(color) {
  const [r, g, b] = [1, 3, 5].map((i) => {
    const v = parseInt(color.slice(i, i + 2), 16) / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

export const typeOf = (project, key) => project.types.find((t) => t.key === key);
export const paint = (type) => (type ? { "--type": type.color, "--ink": ink(type.color) } : {});

// Why somebody skipped, in words: the label of a reason, or what was written.
export const skipReason = (project, stored) =>
  project.skip_reasons.find(([key]) => key === stored)?.[1] ?? stored.replace(/^other: /, "");

export function Badge({ type }) {
  return html`<span class=${type ? "badge" : "badge none"} style=${paint(type)}>${type ? type.letter : "?"}<span class="hidden">${type ? ` ${type.label}` : " no type"}</span></span>`;
}

// [{text, segment}] of one side, in order; segment is undefined between segments.
export function pieces(points, segments, side) {
  const found = [];
  let at = 0;
  segments.forEach((s, i) => {
    const from = s[`${side}0`], to = s[`${side}1`];
    if (from > at) found.push({ text: points.slice(at, from).join("") });
    found.push({ text: points.slice(from, to).join(""), segment: i });
    at = to;
  });
  if (at < points.length) found.push({ text: points.slice(at).join("") });
  return found;
}

// The answer with what was taken out and put in.
export function DiffLine({ project, response, corrected, segments, current, select }) {
  const before = pieces([...response], segments, "src"), after = pieces([...corrected], segments, "dst");
  const put = after.filter((p) => p.segment !== undefined);
  return html`<p class="diff">${after.length + before.length === 0 ? "" : before.map((piece) => {
    if (piece.segment === undefined) return piece.text;
    const i = piece.segment, type = typeOf(project, segments[i].type), added = put[i].text;
    return html`<span class=${"change" + (i === current ? " current" : "") + (type ? "" : " none")} style=${paint(type)}
      onClick=${select && (() => select(i))}><${Badge} type=${type} />${piece.text && html`<del>${piece.text}</del>`}${
      piece.text && added ? " " : ""}${added && html`<ins>${added}</ins>`}</span>`;
  })}</p>`;
}

// The answer with its labeled stretches.
export function LabeledLine({ project, response, segments }) {
  return html`<p class="diff">${pieces([...response], segments, "src").map((piece) => {
    if (piece.segment === undefined) return piece.text;
    const type = typeOf(project, segments[piece.segment].type);
    return html`<span class=${"change" + (type ? "" : " none")} style=${paint(type)}><${Badge} type=${type} /><mark>${piece.text}</mark></span>`;
  })}</p>`;
}

export const Shown = ({ project, response, copy }) =>
  project.kind === "mhumaneval"
    ? html`<${LabeledLine} project=${project} response=${response} segments=${copy.segments} />`
    : html`<${DiffLine} project=${project} response=${response} corrected=${copy.corrected} segments=${copy.segments} />`;
