// The page's frame: who is signed in, which screen the address names, the head with its links, light or dark.

import { html, render, useCallback, useEffect, useState } from "./vendor/htm-preact-standalone.module.js";
import { call, onSignedOut } from "./api.js";
import { setKeys } from "./keys.js";
import { address, place } from "./places.js";
import { SignIn } from "./signin.js";

const SCREENS = {
  home: () => import("./home.js"),
  work: () => import("./desk.js"),
  mine: () => import("./history.js"),
  stats: () => import("./statistics.js"),
  adjudicate: () => import("./adjudicate.js"),
  agreement: () => import("./agreement.js"),
  admin: () => import("./admin.js"),
  compare: () => import("./comparison.js"),
};
const LINKS = { work: "Work", mine: "History", stats: "Statistics", adjudicate: "Adjudicate", agreement: "Agreement", admin: "Administration" };
const ROLES = { adjudicate: ["reviewer", "admin"], agreement: ["reviewer", "admin"], admin: ["admin"] };

const store = {
  get: (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set: (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch {
      // the choice lasts as long as the page
    }
  },
};

const here = () => {
  const at = place();
  return SCREENS[at.screen] ? at : { ...at, screen: "home" };
};

const THEMES = { auto: ["Auto", "light dark"], light: ["Light", "light"], dark: ["Dark", "dark"] };

function Theme() {
  const [theme, setTheme] = useState(THEMES[store.get("rlhfv:theme")] ? store.get("rlhfv:theme") : "auto");
  useEffect(() => {
    document.documentElement.style.colorScheme = THEMES[theme][1];
    store.set("rlhfv:theme", theme);
  }, [theme]);
  const names = Object.keys(THEMES), next = names[(names.indexOf(theme) + 1) % names.length];
  return html`<button type="button" class="quiet" onClick=${() => setTheme(next)}
    aria-label=${`Colors: ${THEMES[theme][0]}. Change to ${THEMES[next][0]}`}><span aria-hidden="true">◐</span> ${THEMES[theme][0]}</button>`;
}

function Head({ person, projects, at, signOut }) {
  const project = projects.find((p) => p.id === at.project);
  const links = Object.entries(LINKS).filter(([name]) => !ROLES[name] || ROLES[name].includes(person.role));
  return html`<header class="head">
    <a class="brand" href="#/"><img src="/static/icon.svg" alt="" width="18" height="18" />Annotation</a>
    ${project && html`<span class="project">${project.title || project.name}</span>
      <nav aria-label="Project">${links.map(
        ([name, label]) => html`<a href=${address(project.id, name)} aria-current=${at.screen === name ? "page" : null}>${label}</a>`,
      )}</nav>`}
    <span class="space"></span>
    <${Theme} />
    <span class="person" title=${person.role}>${person.name}</span>
    <button type="button" class="quiet" onClick=${signOut}>Sign out</button>
  </header>`;
}

function App() {
  const [person, setPerson] = useState(undefined); // undefined: not known yet; null: nobody
  const [projects, setProjects] = useState([]);
  const [at, setAt] = useState(here());
  const [Screen, setScreen] = useState(null);
  const [failure, setFailure] = useState("");

  const refresh = useCallback(() => call("GET", "/api/projects").then(setProjects), []);
  const enter = (somebody) => refresh().then(() => setPerson(somebody));
  const go = (project, screen, item) => (location.hash = address(project, screen, item));

  useEffect(() => {
    onSignedOut(() => setPerson(null));
    const token = /^#t=(.+)$/.exec(location.hash)?.[1];
    if (token) history.replaceState(null, "", "#/"); // a token stays in no history
    const first = token ? call("POST", "/api/session", { token: decodeURIComponent(token) }) : call("GET", "/api/me");
    first.then(enter).catch((error) => {
      setPerson(null);
      if (error.status !== 401 || token) setFailure(error.message);
    });
    const moved = () => setAt(here());
    addEventListener("hashchange", moved);
    setAt(here());
    return () => removeEventListener("hashchange", moved);
  }, []);

  useEffect(() => {
    let current = true;
    setKeys({}, {});
    SCREENS[at.screen]().then(
      (module) => current && setScreen({ name: at.screen, view: module.default }),
      () => current && setFailure("A part of the page could not be loaded. Is the server running? Reload the page."),
    );
    if (at.screen === "home" && person) refresh().catch(() => {});
    return () => (current = false);
  }, [at.screen]);

  if (person === undefined) return html`<p class="loading" role="status">Loading…</p>`;
  if (person === null) return html`<${SignIn} enter=${enter} failure=${failure} />`;
  const signOut = () => call("DELETE", "/api/session").then(() => setPerson(null), (error) => setFailure(error.message));
  const project = projects.find((p) => p.id === at.project);
  const ready = Screen?.name === at.screen;
  const lost = !["home", "compare"].includes(at.screen) && !project;
  return html`
    <a class="jump" href="#main" onClick=${(e) => (e.preventDefault(), document.getElementById("main").focus())}>To the content</a>
    <${Head} person=${person} projects=${projects} at=${at} signOut=${signOut} />
    ${failure && html`<p class="banner bad" role="alert">${failure}</p>`}
    <main id="main" class=${at.screen} tabindex="-1">
      ${lost ? html`<p class="page">There is no such project. <a href="#/">To the projects</a></p>` : ready &&
        html`<${Screen.view} key=${`${at.project}/${at.screen}`} project=${project} projects=${projects} person=${person} item=${at.item} go=${go} refresh=${refresh} />`}
    </main>`;
}

render(html`<${App} />`, document.getElementById("app"));
