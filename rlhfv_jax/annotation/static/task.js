import { html, useState } from "./vendor/htm-preact-standalone.module.js";

// One request at a time of a panel, with what it says when it fails.
export function useTask() {
  const [state, setState] = useState({ busy: false, problem: "" });
  const run = async (task) => {
    setState({ busy: true, problem: "" });
    try {
      await task();
      setState({ busy: false, problem: "" });
    } catch (error) {
      setState({ busy: false, problem: error.message });
    }
  };
  return [run, state.busy, state.problem && html`<p class="problem" role="alert">${state.problem}</p>`];
}
