// What the page knows, and how it learns it.
//
// In: the endpoints of the admin API, asked every two seconds, and more seldom when answers take long.
// Out: one state that all views read. Promise: nothing is asked while the page is hidden or held; when
// the sidecar does not answer, what was known stays, marked as old, and it is tried again.

import { Figures } from "./figures.js";

const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const RETRIES_S = [1, 2, 3, 5];

/** Everything that views show. */
export const known = {
  figures: new Figures(),
  /** connecting, live, lost, held or hidden. */
  link: "connecting",
  /** When the last answer came, in ms of the browser's clock. */
  at: null,
  /** When it is tried again. */
  retryAt: null,
  /** How far the sidecar's clock is ahead of ours, in ms. */
  ahead: 0,
  ready: null,
  /** Answers by endpoint; `null` where the config has no such pillar, `undefined` where nobody asked yet. */
  answers: {},
};

/** The sidecar's clock, in seconds since 1970. */
export const serverNow = () => (Date.now() + known.ahead) / 1000;

let changed = () => {};
let wanted = () => [];
let timer = null;
let round = 0;
let failures = 0;
let held = false;
let asking = null;
let endpoints = new Set();

/** Begins. `wants` names the endpoints that the view of the moment needs; `tell` is called when something is new. */
export function begin(wants, tell) {
  wanted = wants;
  changed = tell;
  document.addEventListener("visibilitychange", () => (document.hidden ? rest("hidden") : held || now()));
  if (document.hidden) rest("hidden");
  else now();
}

/** Asks at once. */
export function now() {
  clearTimeout(timer);
  asking?.abort();
  look();
}

/** Stops asking, or goes on. */
export function hold(on) {
  held = on;
  if (on) rest("held");
  else now();
}

function rest(link) {
  clearTimeout(timer);
  asking?.abort();
  asking = null;
  known.link = link;
  known.retryAt = null;
  changed();
}

async function look() {
  const own = (asking = new AbortController());
  const begun = performance.now();
  const late = setTimeout(() => own.abort(), PATIENCE_MS);
  let wait = EVERY_MS;
  try {
    // Pillars come and go with the config; what is not there is not asked for.
    if (round % 5 === 0 || known.link !== "live") endpoints = new Set((await ask("", "application/json", own.signal)).map(({ path }) => path.slice(1)));
    const names = [...new Set(["clusters", "listeners", "config/reloads", ...wanted(), ...(round % 30 === 0 ? ["version"] : [])])];
    const [metrics, ready, ...rest] = await Promise.all([
      ask("metrics", "text/plain", own.signal),
      ask("debug/tasks", "application/json", own.signal),
      ...names.map((name) => ask(name, name === "config" ? "application/yaml" : "application/json", own.signal)),
    ]);
    if (own !== asking) return;
    round += 1;
    known.figures.take(metrics, Date.now());
    known.ready = ready;
    // Pillars that end one after the other leave their last word.
    const stopping = ready.status.endsWith("stopping");
    names.forEach((name, index) => (known.answers[name] = rest[index] ?? (stopping ? known.answers[name] : null)));
    Object.assign(known, { link: "live", at: Date.now(), retryAt: null });
    failures = 0;
    // A sidecar with very many series must not be kept busy by a page.
    wait = Math.max(EVERY_MS, 8 * (performance.now() - begun));
  } catch (error) {
    if (own !== asking) return;
    console.debug("outrigger: no answer:", error.message);
    wait = 1000 * RETRIES_S[Math.min(failures, RETRIES_S.length - 1)];
    failures += 1;
    Object.assign(known, { link: known.at ? "lost" : failures > 1 ? "lost" : "connecting", retryAt: Date.now() + wait });
  } finally {
    clearTimeout(late);
  }
  timer = setTimeout(look, wait);
  changed();
}

/** One answer; null when there is no such endpoint. */
async function ask(name, accept, signal) {
  if (name && !endpoints.has(name)) return null;
  const response = await fetch(`../${name}`, { headers: { accept }, signal, cache: "no-store" });
  const date = Date.parse(response.headers.get("date") ?? "");
  // It is told in whole seconds.
  if (date && Math.abs(date + 500 - Date.now() - known.ahead) > 1500) known.ahead = date + 500 - Date.now();
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return accept === "application/json" ? response.json() : response.text();
}
