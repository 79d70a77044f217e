// Secrets: what is where, how old it is, and when leases end. Values are not here, and nowhere.

import { known, serverNow } from "../data.js";
import { empty, h, sign, state } from "../dom.js";
import { count, span } from "../format.js";
import { table } from "../table.js";

export const filtered = "Filter secrets";
export const needs = ["secrets"];

export function show() {
  const { answers } = known;
  if (answers.secrets === undefined) return h("div", { class: "waiting" }, h("p", null, "Asking for secrets…"));
  const providers = answers.secrets?.providers ?? [];
  const outputs = providers.flatMap((provider) => provider.outputs.map((one) => ({ ...one, provider: provider.name })));
  const paths = providers.flatMap((provider) => provider.paths.map((one, index) => ({ ...one, provider: provider.name, index })));
  const now = serverNow();
  return [
    certificates(now),
    answers.secrets === null
      ? h("section", { class: "card" }, empty("No secrets in this config", "With a ", h("code", null, "secrets"), " section they are fetched, rendered into files and variables, and kept fresh."))
      : [
          providers.flatMap((provider) => provider.troubles.map((trouble) => h("p", { key: trouble, class: "problem" }, sign("bad"), h("span", null, `Provider ${provider.name}: ${trouble}. The last good state stays.`)))),
          table({
            name: "outputs",
            caption: "Files and variables",
            key: (row) => `${row.kind}\u0000${row.name}`,
            rows: outputs,
            none: empty("Nothing is rendered yet"),
            columns: [
              { id: "name", title: "Name", head: true, wide: true, value: (row) => row.name, show: (row) => [h("span", { class: "kind" }, row.kind), " ", h("span", { class: "mono" }, row.name)] },
              { id: "state", title: "State", wide: true, value: (row) => (row.trouble ? `0 ${row.trouble}` : row.done ? "1" : "2"), text: (row) => row.trouble ?? "", show: (row) => [row.trouble ? state("bad", row.done ? "the last good one stays" : "not made") : row.done ? state("ok", "in place") : state("warn", "not made yet"), row.trouble ? h("span", { class: "why" }, row.trouble) : null] },
              { id: "version", title: "Version", num: true, value: (row) => row.version, show: (row) => count(row.version) },
              { id: "age", title: "Age", num: true, value: (row) => (row.changedAt ? now - row.changedAt : null), show: (row) => ago(row.changedAt, now) },
              { id: "checked", title: "Last rendered", num: true, value: (row) => (row.renderedAt ? now - row.renderedAt : null), show: (row) => ago(row.renderedAt, now) },
              { id: "provider", title: "Provider", value: (row) => row.provider },
            ],
          }),
          table({
            name: "paths",
            caption: "Read from providers",
            key: (row) => `${row.provider}\u0000${row.path ?? row.index}`,
            rows: paths,
            none: empty("Nothing was read yet"),
            columns: [
              { id: "path", title: "Path", head: true, wide: true, value: (row) => row.path, show: (row) => (row.path ? h("span", { class: "mono" }, row.path) : h("span", { class: "why" }, "made by a template, so not shown")) },
              { id: "state", title: "State", value: (row) => row.trouble ?? "", show: (row) => [row.trouble ? state("bad", "fails") : state("ok", "read"), row.trouble ? h("span", { class: "why" }, row.trouble) : null] },
              { id: "version", title: "Version", num: true, value: (row) => row.version, show: (row) => count(row.version) },
              { id: "age", title: "Read", num: true, value: (row) => now - row.readAt, show: (row) => ago(row.readAt, now) },
              { id: "lease", title: "Lease ends", num: true, value: (row) => row.lease?.endsAt ?? null, show: (row) => (row.lease ? [ends(row.lease.endsAt, now, row.lease.seconds / 10), h("span", { class: "why" }, row.lease.renewable ? "is renewed" : "is replaced")] : "no lease") },
              { id: "next", title: "Next look", num: true, value: (row) => row.nextAt, show: (row) => (row.nextAt ? `in ${span(row.nextAt - now)}` : "on change") },
              { id: "used", title: "Used by", value: (row) => row.usedBy.join(", "), show: (row) => h("span", { class: "lines" }, row.usedBy.map((one) => h("span", { class: "mono" }, one))) },
              { id: "provider", title: "Provider", value: (row) => row.provider },
            ],
          }),
        ],
  ];
}

function certificates(now) {
  const { figures } = known;
  const all = figures.of("outrigger_identity_not_after_timestamp_seconds").map((one) => figures.now.values[one.slot]).filter((at) => at > 0);
  if (all.length === 0) return null;
  return h("section", { class: "card", "aria-label": "Certificate" }, h("h2", null, "Certificate of this pod"), all.map((at, index) => h("p", { key: index }, ends(at, now, 3600, "ends in "), " ", h("span", { class: "why" }, new Date(at * 1000).toISOString().replace(".000Z", " UTC").replace("T", " ")))));
}

function ends(at, now, close, words = "in ") {
  const left = at - now;
  return left <= 0 ? state("bad", `ended ${span(-left)} ago`) : state(left < close ? "warn" : "ok", `${words}${span(left)}`);
}

function ago(at, now) {
  return at ? `${span(now - at)} ago` : "–";
}
