// Is it healthy; what fails, why and where; how much, how fast, how full.

import { chart } from "../chart.js";
import { known, serverNow } from "../data.js";
import { empty, h, meter, sign, state } from "../dom.js";
import { bytes, count, latency, percent, rate, span } from "../format.js";
import { capital, link, range } from "../main.js";
import { table } from "../table.js";
import { causeWords, CLIENTS, codeWords, flagSentence, flagWords, HEALTH, STATES } from "../words.js";

export const ranged = true;

/** Failures of the last minute are what is wrong now; what is older was. */
const RECENT_MS = 60_000;
/** A certificate that ends sooner should have been renewed. */
const CERTIFICATE_S = 3600;

/** All that is wrong now, the worst first. */
export function problems() {
  const { figures, ready, answers } = known;
  const found = [];
  const add = (level, what, why, href) => found.push({ level, what, why, href });
  for (const one of ready?.components ?? []) {
    const level = STATES[one.state] ?? "warn";
    if (level === "warn" || level === "bad") add(level, `${capital(one.name)} is ${one.state}`, one.reason || `since ${one.since}`, componentView(one.name));
  }
  for (const worker of ready?.workers ?? []) if (worker.deaths > 0) add("warn", `Thread worker-${worker.worker} died ${worker.deaths} times`, "it was started again; the log says why");
  for (const row of failures(RECENT_MS)) {
    if (row.failed === 0) continue;
    const share = row.failed / row.requests;
    add(share >= 0.05 ? "bad" : "warn", `${row.route ? `Route ${row.route}` : "No route"}: ${percent(share)} of requests fail`, `${count(row.failed)} of ${count(row.requests)} in the last minute${row.cluster ? `, cluster ${row.cluster}` : ""}: ${row.why}`, link("tap", { route: row.route, status: "0,5xx" }));
  }
  for (const cluster of answers.clusters?.clusters ?? []) {
    const ill = cluster.endpoints.filter((one) => one.health !== "healthy");
    const here = link("endpoints", { filter: cluster.name });
    if (cluster.problem) add("bad", `Cluster ${cluster.name}: its names are not resolved`, cluster.problem, here);
    if (cluster.panic) add("bad", `Cluster ${cluster.name} is in panic`, "so few endpoints are healthy that the others are used too", here);
    for (const one of ill.slice(0, 3)) add(HEALTH[one.health] ?? "warn", `Endpoint ${one.address} of ${cluster.name} is ${one.health}`, [causeWords(one.reason), one.backInSeconds ? `back in ${span(one.backInSeconds)}` : ""].filter(Boolean).join(", "), here);
    if (ill.length > 3) add("bad", `${ill.length - 3} more endpoints of ${cluster.name} are not healthy`, `of ${cluster.endpoints.length}`, here);
  }
  const last = answers["config/reloads"]?.last;
  if (last?.outcome === "refused") {
    const reason = answers["config/reloads"].reloads[0]?.reasons?.[0];
    add("warn", "The last change of the config was refused", `${reason?.message ?? ""}${reason?.line ? ` (line ${reason.line})` : ""}; the config before it runs on`, link("config"));
  }
  for (const one of figures.of("outrigger_identity_not_after_timestamp_seconds")) {
    const left = figures.now.values[one.slot] - serverNow();
    if (figures.now.values[one.slot] > 0 && left < CERTIFICATE_S) add(left < 600 ? "bad" : "warn", left > 0 ? `The certificate ends in ${span(left)}` : "The certificate has ended", "nothing has renewed it", link("secrets"));
  }
  for (const one of saturation()) if (one.share >= 0.8) add(one.share >= 0.95 ? "bad" : "warn", `${one.name} at ${percent(one.share)} of the limit`, one.detail);
  return found.sort((a, b) => (a.level === "bad" ? 0 : 1) - (b.level === "bad" ? 0 : 1));
}

function componentView(name) {
  return name === "logs" || name === "secrets" ? link(name) : name === "identity" ? link("secrets") : name.startsWith("proxy") ? link("endpoints") : undefined;
}

/** Routes on which requests failed within `ms`, with the reasons in words. */
function failures(ms) {
  const rows = [...known.figures.rows(["direction", "listener", "route", "cluster"], ms).values()];
  for (const row of rows) {
    const flags = [...row.flags].filter(([flag]) => !CLIENTS.has(flag)).sort(([, a], [, b]) => b.more - a.more || b.all - a.all);
    const codes = [...row.codes].sort(([, a], [, b]) => b.more - a.more || b.all - a.all);
    const [flag] = flags[0] ?? [];
    row.flag = flag;
    row.why = flag ? `${flagSentence(flag)} (${flag})` : codes[0] ? `the application answered ${codeWords(codes[0][0])}` : "a gRPC status of failure";
    row.short = flag ? flagWords(flag) : codes[0] ? codeWords(codes[0][0]) : "gRPC status";
  }
  return rows.filter((row) => row.totalFailed > 0 || row.failed > 0).sort((a, b) => b.failed - a.failed || b.totalFailed - a.totalFailed);
}

/** How full each limit is, the fullest first. */
export function saturation() {
  const { figures, answers } = known;
  const all = [];
  const add = (name, value, limit, format = count) => {
    if (limit > 0) all.push({ name, share: value / limit, detail: `${format(value)} of ${format(limit)}` });
  };
  for (const one of Array.isArray(answers.listeners) ? answers.listeners : []) add(`Connections of listener ${one.name}`, one.connections, one.maxConnections);
  const limit = Math.max(0, ...figures.of("outrigger_proxy_buffer_limit_bytes").map((one) => figures.now.values[one.slot]));
  add("Buffers of the data plane", figures.sum("outrigger_proxy_buffer_bytes", figures.now, (labels) => labels.state === "lent"), limit, bytes);
  for (const one of figures.of("outrigger_concurrency_limit_requests")) {
    const { cluster } = one.labels;
    add(`Requests waiting for ${cluster}`, figures.sum("outrigger_concurrency_requests", figures.now, (labels) => labels.cluster === cluster), figures.now.values[one.slot]);
  }
  add("Series of metrics", figures.sum("outrigger_metrics_series"), figures.sum("outrigger_metrics_series_limit"));
  return all.sort((a, b) => b.share - a.share);
}

/** Notes how full limits are at the newest look, whatever view is shown. */
export function note() {
  const point = known.figures.points.at(-1);
  if (point) point.limits ??= Object.fromEntries(saturation().map((one) => [one.name, one.share]));
}

/** One answer to the first question. */
function verdict(found) {
  const { ready } = known;
  const worst = found[0]?.level;
  const point = recent();
  const traffic = !point || point.requests === 0 ? "No request ended in the last minute." : `${count(point.requests)} requests in the last minute, ${percent(point.success)} without failure.`;
  const words = !ready?.ready ? [capital(ready?.status ?? "unknown"), "bad"] : worst === "bad" ? ["Something fails", "bad"] : worst ? ["Works, with warnings", "warn"] : ["All is well", "ok"];
  return h(
    "section",
    { class: `verdict ${words[1]}`, "aria-label": "Health" },
    h("div", { class: "verdict-head" }, sign(words[1]), h("div", null, h("h2", null, words[0]), h("p", null, traffic))),
    found.length === 0 ? null : h("ul", { class: "problems" }, found.slice(0, 8).map((one) => h("li", { key: `${one.what}`, class: one.level }, sign(one.level), h("div", null, one.href ? h("a", { href: one.href }, one.what) : h("strong", null, one.what), one.why ? h("span", { class: "why" }, one.why) : null)))),
    found.length > 8 ? h("p", { class: "hint" }, `and ${found.length - 8} more`) : null,
  );
}

function recent() {
  const { figures } = known;
  const from = figures.ago(RECENT_MS);
  if (!figures.now || from === figures.now) return null;
  const { requests, failed } = figures.outcome(from, figures.now, () => true);
  return { requests, success: requests ? 1 - failed / requests : null };
}

export function show() {
  const { figures, answers, ready } = known;
  const until = known.link === "live" || !figures.now ? Date.now() : figures.now.t;
  // A page that was opened just now has a minute to show, not fifteen.
  const age = until - (figures.points[0]?.t ?? until);
  const base = { points: figures.points, range: Math.min(range(), [60_000, 120_000, 300_000, 600_000].find((step) => age < step) ?? range()), until };
  const proxied = Array.isArray(answers.listeners);
  const limits = saturation();
  const fullest = limits.slice(0, 3);
  const waiting = "Figures come with the second look";
  const found = problems();
  return [
    verdict(found),
    proxied
      ? h(
          "section",
          { class: "charts", "aria-label": "Charts" },
          chart({ ...base, id: "chart-rate", title: "Rate", unit: "requests a second", most: 1, format: rate, note: waiting, lines: [{ label: "inbound", value: (point) => point.inbound }, { label: "outbound", value: (point) => point.outbound }] }),
          chart({ ...base, id: "chart-success", title: "Success", unit: "requests without failure", top: 1, format: percent, note: waiting, lines: [{ label: "inbound", value: (point) => point.inboundSuccess }, { label: "outbound", value: (point) => point.outboundSuccess }] }),
          chart({ ...base, id: "chart-latency", title: "Latency", unit: "to the last byte", most: 0.001, format: latency, note: waiting, lines: [{ label: "p50", value: (point) => point.p50 }, { label: "p95", value: (point) => point.p95 }, { label: "p99", value: (point) => point.p99 }] }),
          chart({ ...base, id: "chart-limits", title: "Saturation", unit: "of limits", top: 1, format: percent, note: waiting, lines: fullest.map((one) => ({ label: shortLimit(one.name), value: (point) => point.limits?.[one.name] ?? null })) }),
        )
      : h("section", { class: "card" }, empty("No proxy in this config", "Without a ", h("code", null, "proxy"), " section no traffic goes through this process.")),
    proxied ? failing() : null,
    h(
      "div",
      { class: "columns" },
      h("section", { class: "card", "aria-label": "Limits" }, h("h2", null, "How full"), limits.length === 0 ? empty("No limits to show") : h("ul", { class: "meters" }, limits.slice(0, 8).map((one) => h("li", { key: one.name }, h("span", { class: "meter-name" }, one.name), meter(one.share, one.name), h("span", { class: "num" }, percent(one.share)), h("span", { class: "meter-detail num" }, one.detail))))),
      h("section", { class: "card", "aria-label": "Components" }, h("h2", null, "Components"), h("ul", { class: "components" }, (ready?.components ?? []).map((one) => h("li", { key: one.name, class: one.state === "disabled" ? "quiet-item" : undefined }, h("span", { class: "component-name" }, one.name), state(STATES[one.state] ?? "warn", one.state === "disabled" ? "off" : one.state), one.reason && one.state !== "disabled" ? h("span", { class: "why" }, one.reason) : null)))),
    ),
    process(),
  ];
}

function shortLimit(name) {
  return name.replace("Connections of listener ", "connections ").replace("Buffers of the data plane", "buffers").replace("Series of metrics", "series").replace("Requests waiting for ", "waiting for ");
}

function failing() {
  const minutes = `${range() / 60_000} min`;
  return table({
    name: "failing",
    caption: "What fails",
    key: (row) => [row.listener, row.route, row.cluster].join("\u0000"),
    rows: failures(range()),
    none: empty("No request has failed", "Failures are answers of 5xx, none at all, and gRPC statuses that blame the server."),
    columns: [
      { id: "route", title: "Route", head: true, value: (row) => row.route, show: (row) => h("a", { href: link("tap", { route: row.route, status: "0,5xx" }), title: "Tap what fails here" }, row.route || "(none)") },
      { id: "why", title: "Why", wide: true, value: (row) => row.short, show: (row) => [state("bad", row.short, row.flag ? h("code", { class: "flag", title: flagSentence(row.flag) }, row.flag) : null)] },
      { id: "cluster", title: "Cluster", value: (row) => row.cluster, show: (row) => (row.cluster ? h("a", { href: link("endpoints", { filter: row.cluster }) }, row.cluster) : "–") },
      { id: "listener", title: "Listener", value: (row) => `${row.listener} (${row.direction})` },
      { id: "failed", title: `Failed, ${minutes}`, num: true, value: (row) => row.failed, show: (row) => count(row.failed) },
      { id: "share", title: "Share", num: true, value: (row) => (row.requests ? row.failed / row.requests : null), show: (row) => percent(row.requests ? row.failed / row.requests : null) },
      { id: "total", title: "Since start", num: true, value: (row) => row.totalFailed, show: (row) => count(row.totalFailed) },
    ],
  });
}

function process() {
  const { figures, ready } = known;
  const from = figures.ago(RECENT_MS);
  const seconds = (figures.now.t - from.t) / 1000;
  const cpu = seconds > 0 ? figures.grew("process_cpu_seconds_total", from, figures.now) / seconds : null;
  const facts = [
    ["Memory", bytes(figures.sum("process_resident_memory_bytes"))],
    ["CPU, last minute", cpu === null ? "–" : `${(cpu * 100).toFixed(1)} % of a core`],
    ["Open connections", count(figures.sum("outrigger_downstream_connections_active"))],
    ["Requests in flight", count(figures.sum("outrigger_http_requests_in_flight"))],
    ["Worker threads", count(ready?.workers?.filter((worker) => worker.started).length ?? 0)],
    ["Config", `generation ${count(figures.sum("outrigger_config_generation"))}`],
  ];
  return h("dl", { class: "facts", "aria-label": "Process" }, facts.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", { class: "num" }, value))));
}
