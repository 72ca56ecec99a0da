// One listener for the whole page. A screen names its actions; typing in a field lets only chords through.

let actions = {}, chords = {};

// By the character, or where the layout has another alphabet by the key's place.
function pressed({ key, code }) {
  if (/^[\x21-\x7e]$/.test(key)) return key;
  if (/^Key[A-Z]$/.test(code)) return code[3].toLowerCase();
  if (/^Digit[0-9]$/.test(code)) return code[5];
  return key;
}

// `plain` by character or key name; `withModifier` as "Ctrl+Enter", "ctrl+s", "Alt+1", "Escape". An action that
// returns false leaves the key to the browser.
export function setKeys(plain, withModifier) {
  actions = plain;
  chords = withModifier;
}

const typing = (element) => /^(TEXTAREA|INPUT|SELECT)$/.test(element?.tagName || "");

addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey, active = document.activeElement;
  const act = (run) => run && run(event) !== false && event.preventDefault();
  if (event.key === "Escape") return act(chords.Escape);
  if (command || event.altKey) {
    const key = event.altKey && /^Digit/.test(event.code) ? event.code[5] : event.key;
    const name = (command ? "Ctrl+" : "") + (event.altKey ? "Alt+" : "") + key;
    return act(chords[name] || chords[name.toLowerCase()]);
  }
  if (typing(active)) return;
  if ((event.key === "Enter" || event.key === " ") && /^(BUTTON|A|SUMMARY)$/.test(active?.tagName)) return;
  act(actions[event.shiftKey ? `Shift+${event.key}` : event.key] || actions[pressed(event)]);
});
