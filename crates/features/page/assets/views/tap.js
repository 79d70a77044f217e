// Requests as they end, live: what `outrigger tap` shows, with the same conditions.
//
// Promise: the sidecar tells requests only while this view is shown and running; leaving it, hiding the
// page, pausing and holding each end the tap there.

import { known } from "../data.js";
import { empty, h, sign } from "../dom.js";
import { bytes, clock, count, latency, peer } from "../format.js";
import { address, go, refresh, say } from "../main.js";
import { codeWords, flagSentence, flagWords } from "../words.js";

export const alone = true;

/** Requests that are kept; older ones go. */
const MOST = 500;
/** The parameters of `outrigger tap`; the first are those that are wanted most. */
const FIELDS = [
  ["status", "Status", "5xx, 404, 400-499"],
  ["path", "Path", "/api or *cart*"],
  ["route", "Route", "cart-*"],
  ["min-latency", "Slower than", "200ms"],
  ["method", "Method", "GET,POST"],
  ["cluster", "Cluster", "cart"],
  ["listener", "Listener", "inbound"],
  ["direction", "Direction", "inbound or outbound"],
  ["peer", "Peer", "spiffe://…/sa/web"],
  ["flag", "Flag", "UF,UT"],
  ["reason", "Reason", "part of its text"],
  ["header", "Header", "x-tenant=blue"],
  ["grpc-status", "gRPC status", "14 or 1-16"],
  ["sample", "Share", "10%"],
];
const FIRST = 4;

let lines = [];
let number = 0;
let missed = 0;
let stream = null;
let running = true;
let problem = null;
let query = null;
let opened = new Set();
let retry = null;

export function enter() {
  running = true;
  start();
}

export function leave() {
  stop();
}

document.addEventListener("visibilitychange", () => {
  if (address().id !== "tap") return;
  if (document.hidden) stop();
  else if (running) start();
});

function wanted() {
  const { params } = address();
  const query = new URLSearchParams();
  for (const [name] of FIELDS) {
    const value = params.get(name)?.trim();
    if (value) query.set(name, value);
  }
  if (params.get("headers")) query.set("headers", "true");
  return query.toString();
}

function stop() {
  clearTimeout(retry);
  stream?.abort();
  stream = null;
}

async function start() {
  stop();
  if (document.hidden) return;
  const own = (stream = new AbortController());
  query = wanted();
  problem = null;
  refresh();
  try {
    const response = await fetch(`../tap?${query}`, { signal: own.signal, cache: "no-store" });
    if (!response.ok) {
      problem = response.status === 404 ? "This config has no proxy section, so there are no requests to tap." : await response.text();
      stream = null;
      return refresh();
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) if (part) take(part);
      refresh();
    }
    if (own === stream) lost();
  } catch (error) {
    if (own === stream && error.name !== "AbortError") lost();
  }
}

/** The sidecar went; it is looked for again. */
function lost() {
  stream = null;
  problem = "The sidecar ended the tap; trying again.";
  retry = setTimeout(() => running && address().id === "tap" && start(), 2000);
  refresh();
}

function take(text) {
  let line;
  try {
    line = JSON.parse(text);
  } catch {
    return;
  }
  if (line.missed) {
    missed += line.missed;
    return;
  }
  number += 1;
  lines.unshift({ ...line, number });
  if (lines.length > MOST) lines.length = MOST;
}

export function show() {
  const { params } = address();
  if (running && query !== null && query !== wanted()) queueMicrotask(start);
  const field = ([name, label, example], index) =>
    h("label", { key: name }, h("span", null, label), h("input", { name, class: index === 0 ? "first-field" : undefined, type: "text", placeholder: example, value: params.get(name) ?? "", spellcheck: "false", autocomplete: "off", autocapitalize: "off", onchange: changed, onkeydown: enterKey }));
  const more = FIELDS.slice(FIRST);
  return [
    h(
      "div",
      { class: "card tap-form" },
      h("div", { class: "fields" }, FIELDS.slice(0, FIRST).map(field)),
      h("details", { open: more.some(([name]) => params.get(name)) || undefined, ontoggle: () => {} }, h("summary", null, "More conditions"), h("div", { class: "fields" }, more.map(field))),
      h(
        "div",
        { class: "tap-bar" },
        h("button", { type: "button", class: "primary", id: "tap-run", onclick: toggle }, running ? "Pause" : "Go on"),
        h("button", { type: "button", id: "tap-clear", onclick: clear }, "Clear"),
        h("label", { class: "check" }, h("input", { type: "checkbox", checked: Boolean(params.get("headers")), onchange: (event) => go({ headers: event.target.checked ? "true" : "" }) }), h("span", null, "with header fields, secrets masked")),
        h("span", { class: "tap-state", role: "status" }, running && stream ? [h("span", { class: "pulse", "aria-hidden": "true" }), "Tapping"] : running ? "Not tapping" : "Paused: the sidecar tells nothing"),
        h("span", { class: "num why" }, `${count(number)} seen${missed ? `, ${count(missed)} missed` : ""}`),
      ),
      problem ? h("p", { class: "problem", role: "alert" }, sign("bad"), h("span", null, problem)) : null,
    ),
    lines.length === 0
      ? h("section", { class: "card" }, problem ? empty("Nothing to show") : empty(running ? "Waiting for requests" : "Nothing was tapped", "Each shows when it ends. Conditions of several kinds must all hold; of one kind, with commas between, any."))
      : h("ol", { class: "taps", "aria-label": "Requests, the newest first" }, lines.map(row)),
  ];
}

function row(line) {
  const code = String(line.code ?? "");
  const failed = code[0] === "5" || code === "0";
  const level = failed ? "bad" : line.flags || code[0] === "4" ? "warn" : "ok";
  const open = opened.has(line.number);
  return h(
    "li",
    { key: line.number, class: `tap ${level}` },
    h(
      "button",
      { type: "button", class: "tap-line", "aria-expanded": String(open), onclick: () => fold(line.number) },
      h("span", { class: "tap-time num" }, clock(Date.parse(line.time), true)),
      h("span", { class: `tap-code num state ${level}` }, sign(level), h("span", null, line.code === undefined ? "TCP" : code === "0" ? "none" : code, line.grpc_status === undefined ? null : `/${line.grpc_status}`)),
      h("span", { class: "tap-took num" }, latency((line.duration_ms ?? 0) / 1000)),
      h("span", { class: "tap-method" }, line.method ?? line.protocol ?? ""),
      h("span", { class: "tap-path mono" }, `${line.host ?? ""}${line.path ?? ""}`),
      h("span", { class: "tap-way" }, `${line.route || "no route"} → ${line.cluster || "–"}`),
      line.flags ? h("span", { class: "tap-why" }, h("code", { class: "flag" }, line.flags), flagWords(line.flags)) : null,
    ),
    open ? details(line) : null,
  );
}

function details(line) {
  const rows = [
    ["Status", line.code === undefined ? null : codeWords(String(line.code))],
    ["Why", line.flags ? `${line.reason ?? ""}${line.reason ? " — " : ""}${line.flags.split(",").map(flagSentence).join("; ")}` : null],
    ["Direction", `${line.direction}, listener ${line.listener}`],
    ["From", line.downstream],
    ["Peer", line.peer ? `${peer(line.peer)} (${line.peer})` : null],
    ["Endpoint", line.endpoint],
    ["Time of the endpoint", line.upstream_ms === undefined ? null : latency(line.upstream_ms / 1000)],
    ["Body in, out", line.bytes_received === undefined ? null : `${bytes(line.bytes_received)}, ${bytes(line.bytes_sent)}`],
    ["Attempts", line.attempts],
    ["Protocol", line.protocol],
    ["User agent", line.user_agent],
    ["Request ID", line.request_id],
    ["Trace ID", line.trace_id],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const fields = (title, list) => (list ? h("section", null, h("h3", null, title), h("dl", { class: "fields-list" }, list.map((one, index) => h("div", { key: index }, h("dt", { class: "mono" }, one.name), h("dd", { class: "mono" }, one.value))))) : null);
  return h("div", { class: "tap-more" }, h("dl", { class: "pairs" }, rows.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value)))), fields("Request fields", line.request_headers), fields("Response fields", line.response_headers));
}

function fold(one) {
  if (!opened.delete(one)) opened.add(one);
  refresh();
}

function changed(event) {
  go({ [event.target.name]: event.target.value.trim() });
}

function enterKey(event) {
  if (event.key === "Enter") changed(event);
  if (event.key === "Escape") event.target.blur();
}

function toggle() {
  running = !running;
  if (running) start();
  else stop();
  say(running ? "Tapping" : "Paused");
  refresh();
}

function clear() {
  lines = [];
  number = missed = 0;
  opened = new Set();
  refresh();
}
