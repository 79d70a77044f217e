// The config that runs, and what the last reloads changed or why they were refused. Secrets are masked by the sidecar.

import { known } from "../data.js";
import { empty, h, state } from "../dom.js";
import { count } from "../format.js";
import { address } from "../main.js";

export const filtered = "Find in the config";
export const needs = ["config", "config/reloads"];

/** Lines that are shown at once. */
const MOST = 5000;

export function show() {
  const { answers, figures, ready } = known;
  const reloads = answers["config/reloads"];
  const text = answers.config;
  if (!reloads || text === undefined) return h("div", { class: "waiting" }, h("p", null, "Asking for the config…"));
  const last = reloads.last;
  return [
    h(
      "section",
      { class: "card", "aria-label": "Reloads" },
      h("h2", null, "Reloads"),
      h("p", { class: "lead" }, h("span", { class: "mono" }, reloads.path), ` is watched. Generation ${count(figures.sum("outrigger_config_generation"))} runs`, ready?.startedAt ? ["; the process started ", when(ready.startedAt)] : null, ".", last?.outcome === "unchanged" ? [" Read again ", when(last.at), ": nothing had changed."] : null),
      reloads.reloads.length === 0 ? empty("Not changed since the start", "A change of the file shows here: what became different, or why it was refused.") : h("ol", { class: "reloads" }, reloads.reloads.map(reload)),
    ),
    effective(text),
  ];
}

function when(at) {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? at : h("time", { datetime: at, class: "num" }, at.replace("T", " ").replace("Z", " UTC"));
}

function reload(one, index) {
  const refused = one.outcome === "refused";
  return h(
    "li",
    { key: `${one.at}-${one.generation ?? ""}-${index}`, class: refused ? "refused" : "applied" },
    h("p", { class: "reload-head" }, refused ? state("bad", "Refused") : state("ok", `Applied, generation ${one.generation}`), when(one.at), refused ? h("span", { class: "why" }, "the config before it runs on") : h("span", { class: "why" }, `${one.changes.length + one.notShown} ${one.changes.length + one.notShown === 1 ? "change" : "changes"}`)),
    refused
      ? h("ul", { class: "reasons" }, one.reasons.map((reason, at) => h("li", { key: at }, reason.line ? h("span", { class: "mono where" }, `line ${reason.line}, column ${reason.column}`) : reason.component ? h("span", { class: "where" }, `component ${reason.component}`) : null, h("span", null, reason.message), reason.help ? h("span", { class: "why" }, reason.help) : null)))
      : h("dl", { class: "diff" }, one.changes.map((change, at) => h("div", { key: at }, h("dt", { class: "mono" }, change.path), change.old !== null && change.old === change.new ? h("dd", { class: "masked" }, "a secret changed") : [change.old === null ? null : h("dd", { class: "old mono" }, h("span", { class: "unseen" }, "before: "), change.old), change.new === null ? null : h("dd", { class: "new mono" }, h("span", { class: "unseen" }, "now: "), change.new)]))),
    one.nextStart?.length ? h("p", { class: "hint" }, `At the next start only: ${one.nextStart.join(", ")}`) : null,
    one.notShown > 0 ? h("p", { class: "hint" }, `and ${one.notShown} more, in the log`) : null,
  );
}

function effective(text) {
  const wanted = (address().params.get("filter") ?? "").toLowerCase();
  const lines = (text ?? "").trimEnd().split("\n").map((line, index) => [index + 1, line]);
  const found = wanted ? lines.filter(([, line]) => line.toLowerCase().includes(wanted)) : lines;
  return h(
    "section",
    { class: "card config-text", "aria-label": "Effective config" },
    h("h2", null, "What runs", h("span", { class: "rows num" }, wanted ? ` ${found.length} of ${lines.length} lines` : ` ${lines.length} lines, defaults written out`)),
    found.length === 0
      ? empty("No line has this in it", "Clear with Esc.")
      : h("pre", { tabindex: 0, "aria-label": "The effective config as YAML" }, found.slice(0, MOST).map(([number, line]) => h("span", { key: number, class: "code-line" }, h("span", { class: "line-number", "aria-hidden": "true" }, number), h("code", null, line || " ")))),
  );
}
