// The page's frame: address, keyboard, header, and which view is shown.
//
// In: the address behind `#`, keys, and what `data.js` knows. Out: one render after each change, at most one a
// frame. An address holds the view, its filter and its order, so that it can be sent to a colleague.

import { begin, hold, known, now } from "./data.js";
import { h, render, sign, state } from "./dom.js";
import { onChartChange } from "./chart.js";
import { clock, span } from "./format.js";
import * as overview from "./views/overview.js";
import * as topology from "./views/topology.js";
import * as routes from "./views/routes.js";
import * as endpoints from "./views/endpoints.js";
import * as tap from "./views/tap.js";
import * as logs from "./views/logs.js";
import * as secrets from "./views/secrets.js";
import * as config from "./views/config.js";

/** By their keys 1 to 8. */
const VIEWS = [
  ["overview", "Overview", overview],
  ["topology", "Topology", topology],
  ["routes", "Routes", routes],
  ["endpoints", "Endpoints", endpoints],
  ["tap", "Tap", tap],
  ["logs", "Logs", logs],
  ["secrets", "Secrets", secrets],
  ["config", "Config", config],
];

const THEMES = ["auto", "light", "dark"];
let theme = "auto";
let held = false;
let shown = null;

/** The view and its parameters, as the address has them. */
export function address() {
  const [, path = "", query = ""] = /^#?\/?([^?]*)\??(.*)$/.exec(location.hash);
  const found = VIEWS.find(([id]) => id === path) ?? VIEWS[0];
  return { id: found[0], title: found[1], view: found[2], params: new URLSearchParams(query) };
}

/** An address within the page. */
export function link(id, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value)).toString();
  return `#/${id}${query ? `?${query}` : ""}`;
}

/** Changes some parameters of the view that is shown, without a step in the history. */
export function go(changes) {
  const { id, params } = address();
  for (const [name, value] of Object.entries(changes)) {
    if (value) params.set(name, value);
    else params.delete(name);
  }
  history.replaceState(null, "", link(id, Object.fromEntries(params)));
  refresh();
}

/** What the charts and tables of recent figures cover, in ms. */
export function range() {
  const wanted = Number(address().params.get("range"));
  return [1, 5, 15].includes(wanted) ? wanted * 60_000 : 5 * 60_000;
}

let due = false;
/** Shows what is known, in the next frame. */
export function refresh() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

function draw() {
  const { id, title, view } = address();
  const entered = shown !== view;
  if (entered) {
    shown?.leave?.();
    if (shown) scrollTo(0, 0);
    shown = view;
    view.enter?.();
  }
  document.title = `${title} · Outrigger ${location.host}`;
  const stale = known.link === "lost";
  document.body.classList.toggle("stale", stale);
  render(document.getElementById("top"), header());
  render(
    document.getElementById("views"),
    VIEWS.map(([one, name], index) => {
      const count = one === "overview" ? overview.problems().length : 0;
      return h(
        "a",
        { key: one, href: link(one), "aria-current": one === id ? "page" : undefined },
        h("kbd", { "aria-hidden": "true" }, index + 1),
        name,
        count ? h("span", { class: "badge", title: `${count} problems` }, count) : null,
      );
    }),
  );
  if (entered) document.querySelector("#views [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  render(document.getElementById("main"), [banner(), toolbar(title, view), h("div", { key: id, class: `view ${id}` }, known.at || view.alone ? view.show() : waiting())]);
}

function waiting() {
  return h("div", { class: "waiting" }, h("p", null, "Asking the sidecar…"));
}

function header() {
  const { ready, answers } = known;
  const word = !ready ? state("off", "unknown") : ready.ready ? state("ok", "Ready") : state("bad", capital(ready.status));
  return [
    h("a", { class: "brand", href: link("overview"), "aria-label": "Outrigger, overview" }, h("img", { src: "icon.svg", alt: "", width: 22, height: 22 }), h("span", null, "Outrigger")),
    h("span", { class: "ready" }, word),
    h("span", { class: "about" }, h("span", { class: "host" }, location.host), answers.version ? `v${answers.version.version}` : null, ready ? ` · up ${span(ready.uptimeSeconds)}` : null),
    h("span", { class: "link" }, linkState()),
    h("button", { type: "button", class: "quiet", id: "hold", "aria-pressed": String(held), onclick: toggleHold }, held ? "Go on" : "Hold"),
    h("button", { type: "button", class: "quiet theme", onclick: nextTheme, "aria-label": `Theme: ${theme}` }, { auto: "Auto", light: "Light", dark: "Dark" }[theme]),
    h("button", { type: "button", class: "quiet", onclick: help, "aria-label": "Keys and help" }, "?"),
  ];
}

function linkState() {
  switch (known.link) {
    case "live":
      return state("ok", "Live");
    case "lost":
      return state("bad", "Lost");
    case "held":
    case "hidden":
      return state("off", "Held");
    default:
      return state("off", "Connecting");
  }
}

/** What must be known before anything else is believed. */
function banner() {
  if (known.link === "lost") {
    const wait = Math.max(0, Math.ceil(((known.retryAt ?? Date.now()) - Date.now()) / 1000));
    return h(
      "div",
      { key: "banner", class: "banner bad", role: "alert" },
      sign("bad"),
      h("span", null, h("strong", null, "Connection to the sidecar lost"), `, trying again ${wait > 0 ? `in ${wait} s` : "now"}. `, known.at ? `All below is as it was at ${clock(known.at)}.` : ""),
      h("button", { type: "button", onclick: now }, "Try now"),
    );
  }
  if (held) {
    return h("div", { key: "banner", class: "banner" }, sign("off"), h("span", null, `Held since ${clock(known.at ?? Date.now())}: nothing is asked of the sidecar.`), h("button", { type: "button", onclick: toggleHold }, "Go on"));
  }
  return null;
}

function toolbar(title, view) {
  const { params } = address();
  return h(
    "div",
    { class: "toolbar", key: "toolbar" },
    h("h1", null, title),
    view.ranged
      ? h(
          "div",
          { class: "ranges", role: "group", "aria-label": "How far back figures go" },
          [1, 5, 15].map((minutes) => h("button", { key: minutes, type: "button", "aria-pressed": String(range() === minutes * 60_000), onclick: () => go({ range: minutes === 5 ? "" : String(minutes) }) }, `${minutes} min`)),
        )
      : null,
    view.filtered
      ? h("input", { key: "filter", id: "filter", type: "search", placeholder: view.filtered, "aria-label": view.filtered, autocomplete: "off", spellcheck: "false", value: params.get("filter") ?? "", oninput: onFilter })
      : null,
  );
}

const onFilter = (event) => go({ filter: event.target.value.trim() });

function toggleHold() {
  held = !held;
  hold(held);
  refresh();
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  try {
    localStorage.setItem("outrigger-theme", theme);
  } catch {
    // It holds for this visit, then.
  }
  refresh();
}

function setTheme(wanted) {
  theme = THEMES.includes(wanted) ? wanted : "auto";
  document.documentElement.dataset.theme = theme;
}

function help() {
  const dialog = document.getElementById("help");
  const keys = [
    [["1", "…", "8"], "the views, in their order"],
    [["/"], "filter what is shown"],
    [["Esc"], "leave the filter and clear it; close this"],
    [["Space"], "hold, and go on"],
    [["t"], "theme: as the system has it, light, dark"],
    [["?"], "this"],
  ];
  render(dialog, [
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", null, keys.map(([all, what]) => h("div", null, h("dt", null, all.map((one) => (one === "…" ? "…" : h("kbd", null, one)))), h("dd", null, what)))),
    h("p", null, "Figures are worked out in this browser from what the admin API says, for the time this page is open. The same in a terminal: ", h("code", null, "outrigger top"), ", ", h("code", null, "tap"), ", ", h("code", null, "clusters"), ", ", h("code", null, "explain"), "."),
    h("button", { type: "button", onclick: () => dialog.close() }, "Close"),
  ]);
  if (!dialog.open) dialog.showModal();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, textarea, select");
  if (event.key === "Escape") {
    if (typing && event.target.id === "filter") {
      event.target.value = "";
      go({ filter: "" });
      event.target.blur();
      document.getElementById("main").focus();
    } else if (address().params.get("filter")) {
      go({ filter: "" });
    }
    return;
  }
  if (typing || document.getElementById("help").open) return;
  const index = "12345678".indexOf(event.key);
  if (event.key.length === 1 && index >= 0) location.hash = link(VIEWS[index][0]);
  else if (event.key === "/") document.querySelector("#filter, .first-field")?.focus();
  else if (event.key === "?") help();
  else if (event.key === "t") nextTheme();
  else if (event.key === " " && !event.target.matches?.("button, a, summary")) toggleHold();
  else return;
  event.preventDefault();
}

export function capital(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : text;
}

/** Tells those who do not see the page. */
export function say(text) {
  document.getElementById("say").textContent = text;
}

try {
  setTheme(localStorage.getItem("outrigger-theme"));
} catch {
  setTheme("auto");
}
onChartChange(refresh);
addEventListener("hashchange", () => {
  refresh();
  // What the new view needs may never have been asked.
  if (known.link === "live") now();
});
addEventListener("keydown", onKey);
let told = "";
begin(
  () => address().view.needs ?? [],
  () => {
    if (known.link !== told && (known.link === "lost" || told === "lost")) say(known.link === "lost" ? "Connection to the sidecar lost" : "Connected again");
    told = known.link;
    overview.note();
    refresh();
  },
);
// A countdown and ages move on their own.
setInterval(() => {
  if (!document.hidden && known.link === "lost") refresh();
}, 1000);
refresh();
