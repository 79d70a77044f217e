// Log forwarding: how far behind each file is, and what holds a sink up.

import { known, serverNow } from "../data.js";
import { empty, h, meter, sign, state } from "../dom.js";
import { bytes, count, percent, rate, span } from "../format.js";
import { range } from "../main.js";
import { table } from "../table.js";

export const ranged = true;
export const filtered = "Filter sources and sinks";
export const needs = ["logs"];

export function show() {
  const { figures, answers } = known;
  if (answers.logs === undefined) return h("div", { class: "waiting" }, h("p", null, "Asking for logs…"));
  if (answers.logs === null) return h("section", { class: "card" }, empty("No logs in this config", "With a ", h("code", null, "logs"), " section the application's log files are read and forwarded."));
  const from = figures.ago(range());
  const seconds = (figures.now.t - from.t) / 1000;
  const grew = (family, label, name) => (seconds > 0 ? figures.grew(family, from, figures.now, (labels) => labels[label] === name) / seconds : null);
  const sources = answers.logs.sources.map((one) => ({ ...one, rate: grew("outrigger_logs_source_lines_total", "source", one.name), bytesRate: grew("outrigger_logs_source_bytes_total", "source", one.name) }));
  const sinks = answers.logs.sinks.map((one) => ({ ...one, rate: grew("outrigger_logs_sink_acknowledged_total", "sink", one.name) }));
  const waiting = sources.reduce((sum, one) => sum + one.waitingBytes, 0);
  const held = [...sinks, ...sources].filter((one) => one.problem?.lasts);
  return [
    h("section", { class: `verdict ${held.length ? "warn" : "ok"}`, "aria-label": "Forwarding" }, h("div", { class: "verdict-head" }, sign(held.length ? "warn" : "ok"), h("div", null, h("h2", null, held.length ? "Forwarding is held up" : waiting > 0 ? "Lines are on their way" : "Everything is delivered"), h("p", null, `${bytes(waiting)} read or to be read that not every sink has acknowledged. Nothing is dropped: sources wait.`)))),
    table({
      name: "sinks",
      caption: "Sinks",
      key: (row) => row.name,
      rows: sinks,
      none: empty("No sinks"),
      columns: [
        { id: "sink", title: "Sink", head: true, value: (row) => row.name },
        { id: "target", title: "To", wide: true, value: (row) => `${row.kind} ${row.target}`, show: (row) => [h("span", { class: "kind" }, row.kind), " ", h("span", { class: "mono" }, row.target)] },
        { id: "state", title: "State", wide: true, value: (row) => (row.problem?.lasts ? `0 ${row.problem.text}` : "1 delivers"), text: (row) => row.problem?.text ?? "delivers", show: problem },
        { id: "buffer", title: "Waiting", num: true, value: (row) => row.bufferBytes / row.bufferLimitBytes, show: (row) => [meter(row.bufferBytes / row.bufferLimitBytes, `Buffer of ${row.name}`), h("span", { class: "why num" }, `${bytes(row.bufferBytes)} of ${bytes(row.bufferLimitBytes)}`)] },
        { id: "rate", title: "Delivered", num: true, value: (row) => row.rate, show: (row) => [rate(row.rate), h("span", { class: "why num" }, `${count(row.acknowledged)} events`)] },
        { id: "retries", title: "Sent again", num: true, value: (row) => row.retries, show: (row) => count(row.retries) },
        { id: "rejected", title: "Given up", num: true, value: (row) => row.rejected, show: (row) => (row.rejected ? state("bad", count(row.rejected)) : "0") },
      ],
    }),
    table({
      name: "sources",
      caption: "Sources",
      key: (row) => row.name,
      rows: sources,
      none: empty("No sources"),
      columns: [
        { id: "source", title: "Source", head: true, value: (row) => row.name },
        { id: "path", title: "File", wide: true, value: (row) => row.path ?? "", show: (row) => [row.kind === "accessLog" ? h("span", null, "the access log") : h("span", { class: "mono" }, row.path), row.missing ? h("span", { class: "why" }, "is not there yet") : null, row.problem?.lasts ? h("span", { class: "why bad" }, row.problem.text) : null] },
        { id: "position", title: "Position", num: true, value: (row) => row.files[0]?.position ?? null, show: position },
        { id: "waiting", title: "Behind", num: true, value: (row) => row.waitingBytes, show: (row) => bytes(row.waitingBytes) },
        { id: "rate", title: "Lines", num: true, value: (row) => row.rate, show: (row) => [rate(row.rate), h("span", { class: "why num" }, `${count(row.lines)} read`)] },
        { id: "bytes", title: "Bytes", num: true, value: (row) => row.bytesRate, show: (row) => `${bytes(row.bytesRate)}/s` },
      ],
    }),
  ];
}

function problem(row) {
  if (row.problem?.lasts) return [state("bad", "held up"), h("span", { class: "why" }, `${row.problem.text}, for ${span(serverNow() - row.problem.at)}`)];
  return [state("ok", "delivers"), row.problem ? h("span", { class: "why" }, `last problem ${span(serverNow() - row.problem.at)} ago: ${row.problem.text}`) : null];
}

function position(row) {
  const file = row.files[0];
  if (!file) return "–";
  const rotated = row.files.length - 1;
  const share = file.length ? file.position / file.length : 1;
  return [percent(share), h("span", { class: "why num" }, `${bytes(file.position)} of ${bytes(file.length)}${rotated > 0 ? `, ${rotated} rotated` : ""}`)];
}
