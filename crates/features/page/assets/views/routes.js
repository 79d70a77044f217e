// Routes: what they match, how often each was taken, how well and how fast.

import { known } from "../data.js";
import { empty, h, state } from "../dom.js";
import { count, latency, percent, rate } from "../format.js";
import { link, range } from "../main.js";
import { table } from "../table.js";
import { flagSentence, flagWords } from "../words.js";

export const ranged = true;
export const filtered = "Filter routes";
export const needs = ["routes"];

export function show() {
  const { figures, answers } = known;
  if (answers.routes === undefined) return h("div", { class: "waiting" }, h("p", null, "Asking for routes…"));
  if (answers.routes === null) return h("section", { class: "card" }, empty("No proxy in this config", "Routes are in the ", h("code", null, "proxy"), " section."));
  const taken = figures.rows(["listener", "route"], range());
  const now = figures.now;
  const from = figures.ago(range());
  const timed = byRoute(figures, from, now);
  const rows = answers.routes.map((route) => ({ ...route, ...figuresOf(taken.get(`${route.listener}\u0000${route.route}`)), times: timed(route) }));
  return table({
    name: "routes",
    caption: "Routes",
    key: (row) => `${row.listener}\u0000${row.kind}\u0000${row.route}`,
    rows,
    // Of very many those that are taken are wanted first, for not all are shown.
    sort: rows.length > 100 ? "hits.desc" : undefined,
    none: empty("No routes", "A listener without routes passes TCP on, or refuses."),
    columns: [
      { id: "route", title: "Route", head: true, value: (row) => row.route, show: (row) => h("a", { href: link("tap", { route: row.route, listener: row.listener }), title: "Tap this route" }, row.route || "(unnamed)") },
      { id: "listener", title: "Listener", value: (row) => row.listener },
      { id: "matches", title: "Matches", wide: true, value: matches, show: (row) => h("span", { class: "lines" }, (matches(row) ? matches(row).split("\n") : ["everything"]).map((line) => h("code", null, line))) },
      { id: "to", title: "To", value: backends, show: (row) => row.backends.length ? h("span", { class: "lines" }, row.backends.map((one) => h("span", null, h("a", { href: link("endpoints", { filter: one.cluster }) }, one.cluster), row.backends.length > 1 ? h("span", { class: "why" }, ` × ${one.weight}`) : null))) : h("span", { class: "why" }, row.filters.length ? "answered here" : "–") },
      { id: "hits", title: "Hits since start", num: true, value: (row) => row.requests, show: (row) => count(row.requests) },
      { id: "rate", title: "Rate", num: true, value: (row) => row.rate, show: (row) => rate(row.rate) },
      { id: "success", title: "Success", num: true, value: (row) => row.success, show: (row) => (row.success === null ? "–" : row.success === 1 ? "100 %" : state(row.success < 0.95 ? "bad" : "warn", percent(row.success))) },
      { id: "why", title: "Fails for", value: (row) => row.flags, show: (row) => (row.flags ? h("span", { title: row.flags.split(",").map(flagSentence).join("; ") }, flagWords(row.flags), " ", h("code", { class: "flag" }, row.flags)) : "–") },
      { id: "p50", title: "p50", num: true, value: (row) => row.times[0], show: (row) => latency(row.times[0]) },
      { id: "p95", title: "p95", num: true, value: (row) => row.times[1], show: (row) => latency(row.times[1]) },
      { id: "p99", title: "p99", num: true, value: (row) => row.times[2], show: (row) => latency(row.times[2]) },
    ],
  });
}

function figuresOf(row) {
  if (!row) return { rate: 0, success: null, flags: "" };
  const flags = [...row.flags].sort(([, a], [, b]) => b.more - a.more || b.all - a.all).slice(0, 2);
  return { rate: row.rate, success: row.success, flags: flags.map(([flag]) => flag).join(",") };
}

/** Quantiles by route, each bucket looked at once. */
function byRoute(figures, from, now) {
  const groups = new Map();
  for (const one of figures.of("outrigger_http_request_duration_seconds_bucket")) {
    const key = `${one.labels.listener}\u0000${one.labels.route}`;
    if (!groups.has(key)) groups.set(key, new Set());
    groups.get(key).add(one);
  }
  return (route) => {
    const key = `${route.listener}\u0000${route.route}`;
    return groups.has(key) ? figures.quantilesOf(groups.get(key), from, now) : [null, null, null];
  };
}

function matches(row) {
  const hosts = (Array.isArray(row.hostnames) ? row.hostnames : []).join(", ");
  return [hosts && `host ${hosts}`, ...row.matches, ...row.filters.map((filter) => `then ${filter}`)].filter(Boolean).join("\n");
}

function backends(row) {
  return row.backends.map((one) => one.cluster).join(", ");
}
