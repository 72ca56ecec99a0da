import { html, useLayoutEffect, useRef } from "./vendor/htm-preact-standalone.module.js";

// Its keys stay inside: one that closes it must not act on the desk as well.
export function Dialog({ title, close, wide, children }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const opener = document.activeElement;
    box.current.showModal();
    return () => opener?.isConnected && opener !== document.body && opener.focus();
  }, []);
  return html`<dialog ref=${box} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onCancel=${(event) => (event.preventDefault(), close && close())}
    onKeyDown=${(event) => event.stopPropagation()}>
    <h2 id="dialog-title">${title}</h2>${children}</dialog>`;
}
