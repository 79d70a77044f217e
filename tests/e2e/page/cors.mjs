// The CORS filter as a browser sees it: pages of two origins that ask the same route, one of them allowed.

import assert from "node:assert/strict";
import http from "node:http";
import { launch, steps } from "./browser.mjs";

const given = JSON.parse(process.env.OUTRIGGER_GIVEN);

/** A site with an empty page. */
async function site(port) {
  const server = http.createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>site</title>"));
  await new Promise((done) => server.listen(port, "127.0.0.1", done));
  return server;
}
const sites = [await site(given.allowed), await site(given.refused)];

const browser = await launch();
const context = await browser.newContext();
const page = await context.newPage();

/** What a script on the page gets. */
const ask = (path, options = {}) =>
  page.evaluate(
    async ([url, options]) => {
      try {
        const answer = await fetch(url, options);
        return { status: answer.status, body: await answer.text(), exposed: answer.headers.get("x-app"), hidden: answer.headers.get("x-hidden") };
      } catch (error) {
        return { failed: error.name };
      }
    },
    [`http://127.0.0.1:${given.inbound}${path}`, options],
  );

const put = { method: "PUT", headers: { "x-tenant": "blue" } };

await steps({
  "a page that is allowed reads the answer, and of its fields what is exposed": async () => {
    await page.goto(`http://127.0.0.1:${given.allowed}/`);
    const got = await ask("/api");
    assert.deepEqual([got.status, got.exposed, got.hidden], [200, "shop", null]);
    assert.match(got.body, /^GET \/api HTTP/);
  },
  "its preflight lets a PUT with a field of its own through": async () => {
    const got = await ask("/api/put", put);
    assert.equal(got.status, 200, JSON.stringify(got));
    assert.match(got.body, /^PUT \/api\/put HTTP/);
    assert.match(got.body, /x-tenant: blue/);
  },
  "it reads our own failures, too": async () => {
    assert.equal((await ask("/api/gone")).status, 503);
  },
  "a method or a field that is not allowed stays out": async () => {
    assert.deepEqual(await ask("/api/delete", { method: "DELETE" }), { failed: "TypeError" });
    assert.deepEqual(await ask("/api/field", { method: "PUT", headers: { "x-other": "1" } }), { failed: "TypeError" });
  },
  "with credentials it needs more than this route allows": async () => {
    assert.deepEqual(await ask("/api", { credentials: "include" }), { failed: "TypeError" });
    await context.addCookies([{ name: "id", value: "7", url: `http://127.0.0.1:${given.inbound}/` }]);
    const got = await ask("/cookies", { credentials: "include" });
    assert.equal(got.status, 200, JSON.stringify(got));
    assert.match(got.body, /cookie: id=7/);
  },
  "a page of another origin reads nothing, and its PUT is never sent": async () => {
    await page.goto(`http://127.0.0.1:${given.refused}/`);
    assert.deepEqual(await ask("/api"), { failed: "TypeError" });
    assert.deepEqual(await ask("/api/refused", put), { failed: "TypeError" });
    assert.deepEqual(await ask("/cookies", { credentials: "include" }), { failed: "TypeError" });
  },
  "without the filter no page of another origin reads anything": async () => {
    await page.goto(`http://127.0.0.1:${given.allowed}/`);
    assert.deepEqual(await ask("/plain"), { failed: "TypeError" });
  },
  "no page reads the admin API, or makes it do anything": async () => {
    const admin = (path, options) => page.evaluate(([url, options]) => fetch(url, options).then((answer) => ({ status: answer.status }), (error) => ({ failed: error.name })), [`${given.admin}${path}`, options]);
    assert.deepEqual(await admin("/config"), { failed: "TypeError" });
    assert.deepEqual(await admin("/tap"), { failed: "TypeError" });
    await admin("/quitquitquit", { method: "POST", mode: "no-cors" });
    await admin("/log-level?level=off", { method: "POST", mode: "no-cors" });
    assert.equal((await (await fetch(`${given.admin}/log-level`)).text()).trim(), "info", "neither stopped nor silenced");
    const framed = await page.evaluate((url) => new Promise((done) => {
      const frame = document.createElement("iframe");
      frame.src = url;
      frame.onload = () => { try { done(frame.contentDocument === null ? "foreign" : "readable"); } catch { done("foreign"); } };
      document.body.append(frame);
    }), `${given.admin}/ui/`);
    assert.equal(framed, "foreign");
    const inside = page.frames().find((frame) => frame !== page.mainFrame());
    assert.ok(!inside || !(await inside.content().catch(() => "")).includes("Outrigger"), "the page is not framed");
  },
});
await browser.close();
for (const server of sites) {
  server.close();
  server.closeAllConnections();
}
