// The page beside traffic: what was sent is what it shows, and it shows why things fail.

import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import { spawn } from "node:child_process";
import { accessible, eventually, fits, launch, open, PATIENCE, picture, shown, shows, steps } from "./browser.mjs";

const given = JSON.parse(process.env.OUTRIGGER_GIVEN);
const EVIL = "<img/src=x/onerror=alert(1)>";
const VIEWS = ["overview", "topology", "routes", "endpoints", "tap", "logs", "secrets", "config"];
const SECRETS = ["hunter2", "4real", "t0ken"];

/** An endpoint that always fails. */
const failing = http.createServer((_, response) => response.writeHead(500).end("no"));
await new Promise((done) => failing.listen(given.failing, "127.0.0.1", done));

function send(port, path, headers = {}) {
  return new Promise((done, fail) => {
    const request = http.get({ host: "127.0.0.1", port, path, headers: { host: "shop", ...headers }, agent: false, timeout: PATIENCE }, (answer) => {
      answer.resume();
      answer.on("end", () => done(answer.statusCode));
    });
    request.on("error", fail);
  });
}

async function metric(name) {
  const text = await (await fetch(`${given.admin}/metrics`)).text();
  return text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `)).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

/** What each view must show, however it looks. */
const MARKS = {
  overview: ["Route nowhere", "cannot connect"],
  topology: ["front.web", "cart"],
  routes: ["nowhere", "Hits since start"],
  endpoints: ["ejected"],
  tap: ["Tapping"],
  logs: ["held up"],
  secrets: ["db.env"],
  config: ["What runs"],
};

const browser = await launch();
// A tap with a wrong condition is answered by 400.
const allowed = ["status of 400"];
const page = await open(browser, given.admin, { allowed });
const at = (view) => page.goto(`${given.admin}/ui/#/${view}`);
const row = (name) => page.locator("tbody tr", { has: page.locator(`th:has-text("${name}")`) }).first();
let restarted = null;

await steps({
  "a browser at the admin address is led to the page": async () => {
    const answer = await page.goto(`${given.admin}/`);
    assert.equal(new URL(page.url()).pathname, "/ui/");
    assert.match(answer.headers()["content-security-policy"], /default-src 'none'; script-src 'self'; style-src 'self'/);
    await shows(page, "header", "Ready", "Live", "v0.");
    assert.match(await page.title(), /^Overview · Outrigger/);
  },

  "traffic of all kinds": async () => {
    for (let n = 0; n < 20; n += 1) assert.equal(await send(given.inbound, "/products"), 200);
    for (let n = 0; n < 10; n += 1) assert.equal(await send(given.inbound, "/gone"), 503);
    assert.equal(await send(given.inbound, "/broken"), 500);
    assert.equal(await send(given.inbound, "/broken"), 500);
    for (let n = 0; n < 7; n += 1) assert.equal(await send(given.outbound, "/items", { host: "cart" }), 200);
  },

  "the overview says what fails, why and where": async () => {
    const text = await shows(page, "main", "Something fails", "Route nowhere: 100 % of requests fail", "10 of 10 in the last minute, cluster gone: no connection to the endpoint: refused, timed out, or TLS failed (UF)", `Endpoint 127.0.0.1:${given.failing} of broken is ejected`, "answers of 5xx in a row", "Logs is degraded");
    assert.ok(!text.includes("Route everything"), "what works is no problem");
    await shows(page, ".table-frame", "What fails 2", "cannot connect", "500 Internal Server Error");
    await eventually("the chart to have points", async () => assert.match(await page.locator("#chart-rate svg").getAttribute("aria-label"), /inbound [\d<.]+\/s, outbound/));
    assert.equal(await page.locator("#views .badge").innerText(), String(await page.locator(".problems li").count()));
  },

  "routes are counted to the request": async () => {
    await at("routes");
    await shows(page, "main", "Routes 4");
    for (const [name, ...parts] of [["nowhere", "/gone/*", "gone", "10", "0 %", "cannot connect UF"], ["everything", "everything", "app", "100 %"], ["broken", "2", "0 %"], ["to-cart", "host cart", "cart", "7", "100 %"]]) {
      const text = await eventually(`the row ${name}`, async () => {
        const text = (await row(name).innerText()).replace(/\s+/g, " ");
        for (const part of parts) assert.ok(text.includes(part), `${part} in: ${text}`);
        return text;
      });
      assert.ok(!text.includes("NaN") && !text.includes("undefined"), text);
    }
    // 20 in plain text, and those of the peer with a certificate.
    assert.match((await row("everything").innerText()).replace(/\s+/g, " "), new RegExp(` ${20 + given.peers} `));
  },

  "tables sort and filter, and the address remembers": async () => {
    await page.getByRole("button", { name: "Hits since start" }).click();
    await eventually("the order", async () => assert.equal(await page.locator("tbody th").first().innerText(), "everything"));
    assert.equal(await page.locator("th[aria-sort=descending]").innerText().then((text) => text.trim().split(/\s/)[0]), "Hits");
    await page.keyboard.press("/");
    await page.keyboard.type("gone");
    await shows(page, "main", "Routes 1 of 4", "nowhere");
    await page.reload();
    await shows(page, "main", "Routes 1 of 4", "nowhere");
    assert.equal(await page.inputValue("#filter"), "gone");
    await page.fill("#filter", "no such thing");
    await shows(page, "main", "No row has this in it");
    await page.focus("#filter");
    await page.keyboard.press("Escape");
    await shows(page, "main", "Routes 4");
    assert.equal(await page.inputValue("#filter"), "");
  },

  "endpoints tell their health, and why": async () => {
    await at("endpoints");
    await shows(page, "main", "Endpoints 4", "0 of 1 healthy");
    await eventually("the ejected one", async () => assert.match((await row(`127.0.0.1:${given.failing}`).innerText()).replace(/\s+/g, " "), /broken ejected answers of 5xx in a row, back in \d+ (min|s)/));
    assert.match((await page.locator("tbody tr").first().innerText()).replace(/\s+/g, " "), /ejected/, "the worst first");
  },

  "the topology names callers by identity and clusters by name": async () => {
    await at("topology");
    await shows(page, ".callers", "front.web", "spiffe://shop.example/ns/web/sa/front", "Without identity");
    // The page was loaded anew: rates are of what comes from here on, totals of all there was.
    await shows(page, ".called", "cart", "since start 7");
    for (let n = 0; n < 3; n += 1) assert.equal(await send(given.outbound, "/items", { host: "cart" }), 200);
    await shows(page, ".called", "cart", "1 of 1 endpoints healthy", "success 100 %", "since start 10");
    await shows(page, ".pod", "in", "permissive", "out");
    await eventually("lines between cards", async () => assert.ok((await page.locator(".ways path").count()) >= 3));
  },

  "a tap shows a request as it happens, as text and masked": async () => {
    await at("tap");
    await shows(page, "main", "Tapping", "Waiting for requests");
    await page.getByText("with header fields").click();
    await eventually("a tap with fields", async () => assert.equal(await metric("outrigger_taps_active"), 1));
    await eventually("the request", async () => {
      assert.equal(await send(given.inbound, `/products/${EVIL}`, { "x-evil": EVIL, authorization: "Bearer 4real", "x-user": "ann" }), 200);
      assert.ok((await page.locator(".tap").count()) > 0);
    });
    await page.locator(".tap-line").first().click();
    await eventually("fields", async () => {
      const text = await shown(page, ".tap-more");
      for (const part of ["200", "x-evil", EVIL, "x-user ann", "masked"]) assert.ok(text.includes(part), `${part} in: ${text}`);
    });
    assert.ok((await shown(page, ".tap-path")).includes(`shop/products/${EVIL}`));
    assert.equal(await page.locator("main img").count(), 0, "no text became markup");
    assert.ok(!(await page.content()).includes("4real"));
  },

  "a tap's conditions are the sidecar's, and a wrong one is told": async () => {
    await at("tap?status=5xx");
    await page.getByRole("button", { name: "Clear" }).click();
    await eventually("only failures", async () => {
      await send(given.inbound, "/products/fine");
      await send(given.inbound, "/gone/today");
      const codes = await page.locator(".tap-code").allInnerTexts();
      assert.ok(codes.length > 0 && codes.every((code) => code.trim() === "503"), codes.join());
    });
    await shows(page, ".taps", "/gone/today", "UF", "cannot connect");
    await page.fill("input[name=status]", "5zz");
    await page.keyboard.press("Enter");
    await shows(page, "main", "`5zz` is not a status");
    await page.fill("input[name=status]", "");
    await page.keyboard.press("Enter");
    await shows(page, "main", "Tapping");
  },

  "a tap ends in the sidecar when it is paused, hidden or left": async () => {
    await eventually("one tap", async () => assert.equal(await metric("outrigger_taps_active"), 1));
    await page.getByRole("button", { name: "Pause" }).click();
    await eventually("no tap", async () => assert.equal(await metric("outrigger_taps_active"), 0));
    await shows(page, "main", "Paused");
    await page.getByRole("button", { name: "Go on" }).first().click();
    await eventually("a tap again", async () => assert.equal(await metric("outrigger_taps_active"), 1));
    const hide = (hidden) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    await hide(true);
    await eventually("no tap while hidden", async () => assert.equal(await metric("outrigger_taps_active"), 0));
    await hide(false);
    await eventually("a tap once shown", async () => assert.equal(await metric("outrigger_taps_active"), 1));
    await at("routes");
    await eventually("no tap once left", async () => assert.equal(await metric("outrigger_taps_active"), 0));
  },

  "logs tell what is behind, and what holds it up": async () => {
    await at("logs");
    await shows(page, "main", "Forwarding is held up", "Sinks 2", "archive", "delivers", "loki", "held up", "Connection refused", "Sources 1", "app.log", /Behind .* \d+ B/);
  },

  "secrets have an age and no value": async () => {
    await at("secrets");
    await shows(page, "main", "db.env", "in place", /\d+ (s|min) ago/, "Read from providers 1", "db", "Certificate of this pod", "ends in 23 h");
    for (const secret of SECRETS) assert.ok(!(await page.content()).includes(secret), secret);
  },

  "a reload shows what it changed, and a refused one why": async () => {
    await at("config");
    await shows(page, "main", "Not changed since the start", "What runs");
    const replace = (text) => {
      fs.writeFileSync(`${given.config}.new`, text);
      fs.renameSync(`${given.config}.new`, given.config);
    };
    const before = fs.readFileSync(given.config, "utf8");
    replace(before.replace("timeouts: { request: 5s }", "timeouts: { request: 7s }").replace("t0ken1", "t0ken2"));
    await shows(page, ".reloads", "Applied, generation 2", "2 changes", "proxy.listeners[in].routes[everything].timeouts.request", "5s", "7s", "X-Key", "a secret changed");
    replace(before.replace("  listeners:", "  listners:"));
    await shows(page, ".reloads", "Refused", "line ", "listners", "listeners");
    await at("overview");
    await shows(page, ".problems", "The last change of the config was refused");
    replace(before.replace("timeouts: { request: 5s }", "timeouts: { request: 7s }").replace("t0ken1", "t0ken2"));
    await eventually("the refusal to be over", async () => assert.ok(!(await shown(page, ".problems")).includes("config was refused")));
    await at("config");
    for (const secret of SECRETS) assert.ok(!(await page.content()).includes(secret), secret);
    await page.fill("#filter", "shutdownBudget");
    await shows(page, ".config-text", /1 of \d+ lines/, "shutdownBudget: 10s");
  },

  "keys lead everywhere": async () => {
    await at("overview");
    for (const [index, view] of VIEWS.entries()) {
      await page.keyboard.press(String(index + 1));
      await eventually(`view ${view}`, async () => {
        assert.ok(page.url().includes(`#/${view}`), page.url());
        assert.equal(await page.locator("#views [aria-current=page]").count(), 1);
      });
    }
    await page.keyboard.press("?");
    await shows(page, "dialog[open]", "Keys", "filter what is shown");
    await page.keyboard.press("Escape");
    await eventually("the help to close", async () => assert.equal(await page.locator("dialog[open]").count(), 0));
    await page.keyboard.press("1");
    await page.keyboard.press("Tab");
    const ring = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    await eventually("a visible focus", async () => assert.equal(await ring(), "solid"));
    // The focus stays where it is while figures move.
    await page.locator("#views a").nth(2).focus();
    const looks = await page.evaluate(() => performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/metrics")).length);
    await eventually("another look", async () => assert.ok((await page.evaluate(() => performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/metrics")).length)) > looks));
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "3Routes");
  },

  "held, it asks nothing": async () => {
    await page.locator("#main").focus();
    await page.keyboard.press("Space");
    await shows(page, "main", "Held since");
    let asked = 0;
    const count = () => (asked += 1);
    page.on("request", count);
    // Longer than between two looks: that nothing comes can only be waited for.
    await page.waitForTimeout(2500);
    assert.equal(asked, 0);
    await page.keyboard.press("Space");
    await eventually("it asks again", async () => assert.ok(asked > 0));
    page.off("request", count);
  },

  "every view, in both themes, wide and narrow": async () => {
    for (const [theme, width, height] of [["light", 1280, 800], ["dark", 1280, 800], ["dark", 360, 740], ["light", 360, 740]]) {
      await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
      await page.setViewportSize({ width, height });
      for (const view of VIEWS) {
        await at(view);
        await shows(page, "main", ...MARKS[view]);
        if (view === "tap") {
          await eventually("a request in the tap", async () => {
            await send(given.inbound, `/gone/${EVIL}`);
            assert.ok((await page.locator(".tap").count()) > 0);
          });
        }
        const name = `${view}-${theme}-${width}`;
        await fits(page, name);
        // The other two differ in nothing that is judged here.
        if (theme === (width === 1280 ? "light" : "dark")) await accessible(page, name);
        await picture(page, name);
      }
    }
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.emulateMedia({ colorScheme: "dark", reducedMotion: "reduce" });
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), ground, "the themes differ");
    await page.setViewportSize({ width: 1280, height: 800 });
  },

  "nothing went wrong on the way": async () => {
    assert.deepEqual(await page.wrong(), []);
  },

  "when the sidecar stops, what was known stays and is marked": async () => {
    await at("overview");
    await shows(page, "main", "Route nowhere");
    // Pillars end one after the other, then connections break, and there is nobody.
    allowed.push("status of 404", "net::ERR_");
    process.kill(given.pid, "SIGTERM");
    await shows(page, "main", "Connection to the sidecar lost, trying again", "All below is as it was at", "Rate");
    await shows(page, "header", "Lost");
    assert.ok(await page.evaluate(() => document.body.classList.contains("stale")));
    await accessible(page, "overview, lost");
    await picture(page, "lost-dark-1280");
  },

  "when it is back, it is found, and figures begin anew": async () => {
    restarted = spawn(given.executable, ["run", "-c", given.config], { stdio: "ignore" });
    await shows(page, "header", "Live", "Ready", /up \d+ s/);
    assert.ok(!(await page.evaluate(() => document.body.classList.contains("stale"))));
    assert.ok(!(await shown(page, "main")).includes("Route nowhere"), "what failed before the restart fails no more");
    assert.deepEqual(await page.wrong(), []);
  },
}).finally(() => restarted?.kill("SIGTERM"));
await browser.close();
failing.close();
failing.closeAllConnections();
