// Who calls this pod, and whom it calls: rate, success and latency on each way.

import { known } from "../data.js";
import { empty, h, sign, state } from "../dom.js";
import { count, latency, peer, percent, rate } from "../format.js";
import { link, range, refresh } from "../main.js";

export const ranged = true;
export const needs = ["connections"];

/** Cards of one side; the others are summed up. */
const MOST = 12;

let measured = "";
let ways = [];

export function show() {
  const { figures, answers } = known;
  if (!Array.isArray(answers.listeners)) return h("section", { class: "card" }, empty("No proxy in this config", "Without a ", h("code", null, "proxy"), " section nobody is called through this process."));
  const inbound = side("inbound", "peer");
  const outbound = side("outbound", "cluster");
  const applications = side("inbound", "cluster").filter((one) => one.name);
  const now = figures.now;
  const from = figures.ago(range());
  const times = (fits) => figures.quantiles(from, now, fits)[1];
  for (const one of outbound) one.p95 = times((labels) => labels.direction === "outbound" && labels.cluster === one.name);
  // What draws the lines runs once the cards have their places.
  requestAnimationFrame(measure);
  return [
    h(
      "div",
      { class: "map", id: "map" },
      h("svg", { class: "ways", "aria-hidden": "true" }, ways.map((way) => h("path", { key: way.id, class: `way ${way.level}`, d: way.d, "stroke-width": way.width }))),
      h("section", { class: "side callers", "aria-label": "Callers" }, h("h2", null, "Callers"), inbound.length ? inbound.map((one) => caller(one)) : quiet("Nobody has called yet", clients())),
      h(
        "section",
        { class: "side pod", "aria-label": "This pod" },
        h("h2", null, "This pod"),
        h(
          "article",
          { class: "node self", id: "node-self" },
          h("h3", null, "Outrigger"),
          h("ul", { class: "listeners" }, [...answers.listeners].map((one) => h("li", { key: one.name }, h("span", null, h("b", null, one.name), h("span", { class: "why" }, `${one.direction}, ${one.address}, TLS\u00a0${one.tls}`)), h("span", { class: "num" }, `${count(one.connections)} conn.`)))),
        ),
        applications.length ? h("article", { class: "node application" }, h("h3", null, "Application"), applications.map((one) => h("div", { key: one.name, class: "app-row" }, h("a", { href: link("endpoints", { filter: one.name }) }, one.name), figuresOf(one)))) : null,
      ),
      h("section", { class: "side called", "aria-label": "Called" }, h("h2", null, "Called"), outbound.length ? outbound.map((one) => called(one)) : quiet("Nobody was called yet", "Connections to clusters show here once a request goes out.")),
    ),
  ];
}

export function leave() {
  measured = "";
}

function quiet(title, ...more) {
  return h("article", { class: "node" }, empty(title, ...more));
}

/** The rows of one direction by a label, those that were busy lately first. */
function side(direction, label) {
  const rows = [...known.figures.rows(["direction", label], range()).values()].filter((row) => row.direction === direction && row.total > 0);
  rows.sort((a, b) => b.requests - a.requests || b.total - a.total || a[label].localeCompare(b[label]));
  const [first, rest] = [rows.slice(0, MOST), rows.slice(MOST)];
  const all = first.map((row) => ({ ...row, id: `${direction}-${row[label]}`, name: row[label] }));
  if (rest.length) {
    const sum = (name) => rest.reduce((total, row) => total + (row[name] ?? 0), 0);
    const [requests, failed] = [sum("requests"), sum("failed")];
    all.push({ id: `${direction}-\u0000rest`, name: "", rest: rest.length, direction, requests, failed, rate: sum("rate"), total: sum("total"), success: requests ? 1 - failed / requests : null });
  }
  return all;
}

function level(one) {
  if (one.success === null || one.success === undefined) return "off";
  return one.success < 0.95 ? "bad" : one.success < 1 ? "warn" : "ok";
}

function figuresOf(one, p95) {
  return h(
    "dl",
    { class: "node-figures" },
    h("div", null, h("dt", null, "rate"), h("dd", { class: "num" }, rate(one.rate))),
    h("div", null, h("dt", null, "success"), h("dd", { class: `num ${level(one)}` }, level(one) === "off" ? null : sign(level(one)), percent(one.success))),
    p95 === undefined ? null : h("div", null, h("dt", null, "p95"), h("dd", { class: "num" }, latency(p95))),
    h("div", null, h("dt", null, "since start"), h("dd", { class: "num" }, count(one.total))),
  );
}

function caller(one) {
  const title = one.rest ? `${one.rest} more callers` : one.name ? peer(one.name) : "Without identity";
  return h("article", { class: "node", key: one.id, id: `node-${one.id}`, "data-way": "in" }, h("h3", { title: one.name || undefined }, one.name ? h("a", { href: link("tap", { peer: one.name, direction: "inbound" }) }, title) : title), one.name ? h("p", { class: "why id" }, one.name) : one.rest ? null : h("p", { class: "why" }, "plain text, or TLS without a SPIFFE ID", clients() ? `: ${clients()}` : ""), figuresOf(one));
}

/** Addresses of clients that are connected now. */
function clients() {
  const open = known.answers.connections?.connections ?? [];
  const inbound = new Set((known.answers.listeners ?? []).filter((one) => one.direction === "inbound").map((one) => one.name));
  const hosts = [...new Set(open.filter((one) => !one.peer && inbound.has(one.listener)).map((one) => one.client.replace(/:\d+$/, "")))];
  return hosts.length ? `${hosts.slice(0, 3).join(", ")}${hosts.length > 3 ? ` and ${hosts.length - 3} more` : ""}` : "";
}

function called(one) {
  const cluster = (known.answers.clusters?.clusters ?? []).find(({ name }) => name === one.name);
  const peers = [...known.figures.rows(["direction", "cluster", "peer"], range()).values()].filter((row) => row.direction === "outbound" && row.cluster === one.name && row.peer).map((row) => peer(row.peer));
  const healthy = cluster?.endpoints.filter((endpoint) => endpoint.health === "healthy").length;
  const title = one.rest ? `${one.rest} more clusters` : one.name || "No cluster";
  return h(
    "article",
    { class: "node", key: one.id, id: `node-${one.id}`, "data-way": "out" },
    h("h3", null, one.name ? h("a", { href: link("endpoints", { filter: one.name }) }, title) : title),
    one.name || one.rest ? null : h("p", { class: "why" }, "refused before a cluster was chosen"),
    cluster ? h("p", { class: "why" }, state(healthy === cluster.endpoints.length ? "ok" : healthy ? "warn" : "bad", `${healthy} of ${cluster.endpoints.length} endpoints healthy`), peers.length ? h("span", { class: "peers" }, `as ${[...new Set(peers)].slice(0, 3).join(", ")}`) : null) : null,
    figuresOf(one, one.p95),
  );
}

/** Works out the lines between the cards, and draws again when they have moved. */
function measure() {
  const box = document.getElementById("map");
  const self = document.getElementById("node-self");
  if (!box || !self) return;
  const origin = box.getBoundingClientRect();
  const pod = self.getBoundingClientRect();
  const stacked = pod.left - origin.left < 40;
  const found = stacked
    ? []
    : [...box.querySelectorAll("[data-way]")].map((node) => {
        const rect = node.getBoundingClientRect();
        const into = node.dataset.way === "in";
        const [x1, x2] = into ? [rect.right, pod.left] : [pod.right, rect.left];
        const near = Math.min(pod.bottom - 16, Math.max(pod.top + 16, rect.top + rect.height / 2));
        const [y1, y2] = into ? [rect.top + rect.height / 2, near] : [near, rect.top + rect.height / 2];
        const [a, b, c, d] = [x1 - origin.left, y1 - origin.top, x2 - origin.left, y2 - origin.top].map(Math.round);
        const middle = Math.round((a + c) / 2);
        const bad = node.querySelector("dd.bad") ? "bad" : node.querySelector("dd.warn") ? "warn" : node.querySelector("dd.ok") ? "ok" : "off";
        return { id: node.id, level: bad, width: 2, d: `M${a} ${b}C${middle} ${b} ${middle} ${d} ${c} ${d}` };
      });
  const text = JSON.stringify(found);
  if (text === measured) return;
  measured = text;
  ways = found;
  refresh();
}

addEventListener("resize", () => requestAnimationFrame(measure));
