// Endpoints of all clusters: health with its reason, load, latency.

import { known } from "../data.js";
import { empty, h, state } from "../dom.js";
import { count, latency, percent, span } from "../format.js";
import { link } from "../main.js";
import { table } from "../table.js";
import { causeWords, HEALTH } from "../words.js";

export const filtered = "Filter endpoints";

const ORDER = { bad: 0, warn: 1, off: 2, ok: 3 };

export function show() {
  const clusters = known.answers.clusters?.clusters;
  if (known.answers.clusters === undefined) return h("div", { class: "waiting" }, h("p", null, "Asking for endpoints…"));
  if (!clusters) return h("section", { class: "card" }, empty("No proxy in this config", "Clusters are in the ", h("code", null, "proxy"), " section."));
  const rows = clusters.flatMap((cluster) => cluster.endpoints.map((one) => ({ ...one, cluster: cluster.name, level: HEALTH[one.health] ?? "warn" })));
  const words = (row) => [row.health, causeWords(row.reason)].filter(Boolean).join(": ");
  return [
    h(
      "ul",
      { class: "chips" },
      clusters.map((cluster) => {
        const healthy = cluster.endpoints.filter((one) => one.health === "healthy").length;
        const level = cluster.problem || cluster.panic || (cluster.endpoints.length > 0 && healthy === 0) ? "bad" : healthy < cluster.endpoints.length ? "warn" : cluster.endpoints.length ? "ok" : "off";
        return h(
          "li",
          { key: cluster.name, class: "chip" },
          h("a", { href: link("endpoints", { filter: cluster.name }) }, cluster.name),
          state(level, `${healthy} of ${cluster.endpoints.length} healthy`),
          h("span", { class: "why" }, `${policy(cluster.policy)}, ${count(cluster.connections)} connections`),
          cluster.panic ? h("span", { class: "why" }, "panic: unhealthy endpoints are used too") : null,
          cluster.problem ? h("span", { class: "why" }, cluster.problem) : null,
        );
      }),
    ),
    table({
      name: "endpoints",
      caption: "Endpoints",
      sort: "health.asc",
      key: (row) => `${row.cluster}\u0000${row.address}`,
      rows,
      none: empty("No endpoints", "No cluster has one: names that DNS does not know yet, or none configured."),
      columns: [
        { id: "endpoint", title: "Endpoint", head: true, value: (row) => row.address, show: (row) => h("span", { class: "mono" }, row.address) },
        { id: "cluster", title: "Cluster", value: (row) => row.cluster, show: (row) => h("a", { href: link("tap", { cluster: row.cluster }), title: "Tap this cluster" }, row.cluster) },
        { id: "health", title: "Health", wide: true, value: (row) => `${ORDER[row.level]} ${words(row)}`, text: words, show: (row) => [state(row.level, row.health), row.reason || row.backInSeconds ? h("span", { class: "why" }, [causeWords(row.reason), row.backInSeconds ? `back in ${span(row.backInSeconds)}` : null].filter(Boolean).join(", ")) : null] },
        { id: "busy", title: "Under way", num: true, value: (row) => row.requestsUnderWay, show: (row) => count(row.requestsUnderWay) },
        { id: "connections", title: "Connections", num: true, value: (row) => row.connections, show: (row) => count(row.connections) },
        { id: "latency", title: "Latency", num: true, value: (row) => row.latencyMs, show: (row) => (row.latencyMs === null ? "–" : latency(row.latencyMs / 1000)) },
        { id: "answers", title: "Answers", num: true, value: (row) => row.answers, show: (row) => count(row.answers) },
        { id: "success", title: "Success", num: true, value: (row) => row.successRate, show: (row) => (row.successRate === null ? "–" : row.successRate === 1 ? "100 %" : state(row.successRate < 0.95 ? "bad" : "warn", percent(row.successRate))) },
        // Columns that would say the same of all are left out.
        rows.some((row) => row.weight !== 1) && { id: "weight", title: "Weight", num: true, value: (row) => row.weight },
        rows.some((row) => row.priority !== 0) && { id: "priority", title: "Priority", num: true, value: (row) => row.priority },
        rows.some((row) => row.zone) && { id: "zone", title: "Zone", value: (row) => row.zone || null },
      ].filter(Boolean),
    }),
  ];
}

function policy(value) {
  const name = typeof value === "string" ? value : Object.keys(value ?? {})[0];
  return (name ?? "").replace(/([A-Z])/g, (letter) => ` ${letter.toLowerCase()}`).trim();
}
