// One listener for the whole page. A screen names its actions; typing in a field lets only chords through.

let actions = {}, chords = {};

// By the character, or where the layout has another alphabet by the key's place.
export function pressed(event) {
  const { key, code } = event;
  if (/^[\x21-\x7e]$/.test(key)) return key;
  if (/^Key[A-Z]$/.test(code)) return code[3].toLowerCase();
  if (/^Digit[0-9]$/.test(code)) return code[5];
  return key;
}

export function useKeys(plain, withModifier) {
  actions = plain;
  chords = withModifier;
}

const typing = (element) => /^(TEXTAREA|INPUT|SELECT)$/.test(element?.tagName || "");

addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  const name =
    (command ? "Ctrl+" : "") + (event.altKey ? "Alt+" : "") +
    (event.altKey && /^Digit/.test(event.code) ? event.code[5] : command || event.altKey ? event.key : "");
  if (command || event.altKey || event.key === "Escape") {
    const run = chords[event.key === "Escape" ? "Escape" : name] || chords[name.toLowerCase()];
    if (run) {
      event.preventDefault();
      run(event);
    }
    return;
  }
  if (typing(document.activeElement)) return;
  if ((event.key === "Enter" || event.key === " ") && /^(BUTTON|A|SUMMARY)$/.test(document.activeElement?.tagName)) return;
  const run = actions[event.shiftKey ? `Shift+${event.key}` : event.key] || actions[pressed(event)];
  if (run) {
    event.preventDefault();
    run(event);
  }
});
