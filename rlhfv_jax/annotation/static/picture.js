// The image: fitted, zoomed around the pointer, moved; it never scrolls away.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-standalone.module.js";

const MOST = 12;

export function Picture({ sha, alt, controls, skipKey }) {
  const frame = useRef(null), at = useRef({ zoom: 1, x: 0, y: 0 });
  const [view, setView] = useState(at.current);
  const [broken, setBroken] = useState(""), missing = broken === sha;
  const set = (next) => {
    const zoom = Math.min(MOST, Math.max(1, next.zoom));
    const limit = (v, size) => Math.min(0, Math.max(size * (1 - zoom), v));
    const { clientWidth, clientHeight } = frame.current;
    at.current = { zoom, x: limit(next.x, clientWidth), y: limit(next.y, clientHeight) };
    setView(at.current);
  };
  const scale = (factor, px = frame.current.clientWidth / 2, py = frame.current.clientHeight / 2) => {
    const { zoom, x, y } = at.current, next = Math.min(MOST, Math.max(1, zoom * factor));
    set({ zoom: next, x: px - ((px - x) * next) / zoom, y: py - ((py - y) * next) / zoom });
  };
  const move = (dx, dy) => set({ ...at.current, x: at.current.x + dx, y: at.current.y + dy });
  controls.current = {
    zoom: () => (at.current.zoom > 1 ? set({ zoom: 1, x: 0, y: 0 }) : scale(2.5)),
    closer: () => scale(1.4), farther: () => scale(1 / 1.4), reset: () => set({ zoom: 1, x: 0, y: 0 }), move,
    zoomed: () => at.current.zoom > 1, missing: () => missing,
  };
  useEffect(() => {
    set({ zoom: 1, x: 0, y: 0 });
    const wheel = (event) => {
      event.preventDefault();
      const box = frame.current.getBoundingClientRect();
      scale(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    };
    frame.current.addEventListener("wheel", wheel, { passive: false });
    return () => frame.current?.removeEventListener("wheel", wheel);
  }, [sha]);

  const fingers = useRef(new Map());
  const down = (event) => {
    fingers.current.set(event.pointerId, [event.clientX, event.clientY]);
    frame.current.setPointerCapture(event.pointerId);
  };
  const drag = (event) => {
    const last = fingers.current.get(event.pointerId);
    if (!last) return;
    const others = [...fingers.current].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const [ox, oy] = others[0][1], box = frame.current.getBoundingClientRect();
      const ratio = Math.hypot(event.clientX - ox, event.clientY - oy) / Math.hypot(last[0] - ox, last[1] - oy);
      if (Number.isFinite(ratio)) scale(ratio, (event.clientX + ox) / 2 - box.left, (event.clientY + oy) / 2 - box.top);
    } else move(event.clientX - last[0], event.clientY - last[1]);
    fingers.current.set(event.pointerId, [event.clientX, event.clientY]);
  };
  const up = (event) => fingers.current.delete(event.pointerId);

  const keys = (event) => {
    const [dx, dy] = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key] || [];
    if (dx === undefined || event.altKey || event.ctrlKey || event.metaKey || at.current.zoom === 1) return;
    event.preventDefault();
    event.stopPropagation();
    move(dx, dy);
  };

  const transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  return html`<section class="picture" aria-label="Image">
    <div class=${"frame" + (view.zoom > 1 ? " zoomed" : "")} ref=${frame} onPointerDown=${down} onPointerMove=${drag}
      tabindex="0" role="group"
      aria-label="Image; when it is zoomed, arrow keys move it" onKeyDown=${keys} onPointerUp=${up} onPointerCancel=${up} onDblClick=${() => controls.current.zoom()}>
      ${missing
        ? html`<p class="missing" role="alert">The image is missing or broken. Skip this item (${skipKey}).</p>`
        : html`<img src=${`/api/image/${sha}`} alt=${alt} draggable="false" style=${{ transform }}
            onError=${() => setBroken(sha)} />`}
    </div>
    <div class="tools" role="group" aria-label="Zoom">
      <button type="button" onClick=${() => scale(1 / 1.4)} aria-label="Zoom out (−)" title="Zoom out (−)">−</button>
      <span class="zoom">${Math.round(view.zoom * 100)} %</span>
      <button type="button" onClick=${() => scale(1.4)} aria-label="Zoom in (+)" title="Zoom in (+)">+</button>
      <button type="button" onClick=${() => set({ zoom: 1, x: 0, y: 0 })} title="Fit (0)">Fit</button>
    </div>
  </section>`;
}
