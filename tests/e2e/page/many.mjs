// The page of a sidecar that knows a thousand routes: what was taken comes first, and the rest is found.

import assert from "node:assert/strict";
import http from "node:http";
import { eventually, fits, launch, open, PATIENCE, picture, shows, steps } from "./browser.mjs";

const given = JSON.parse(process.env.OUTRIGGER_GIVEN);

function send(host, path) {
  return new Promise((done, fail) => {
    const request = http.get({ host: "127.0.0.1", port: given.port, path, headers: { host }, agent: false, timeout: PATIENCE }, (answer) => {
      answer.resume();
      answer.on("end", () => done(answer.statusCode));
    });
    request.on("error", fail);
  });
}

const browser = await launch();
const page = await open(browser, given.admin);
await page.addInitScript(() => {
  window.longest = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((one) => (window.longest = Math.max(window.longest, one.duration)))).observe({ type: "longtask", buffered: true });
});
const first = () => page.locator("tbody th").first().innerText();

await steps({
  "those that were taken most come first, wherever they stand in the file": async () => {
    for (let n = 0; n < 5; n += 1) assert.equal(await send("service-97.bench", "/api/resource-3/x"), 200);
    assert.equal(await send("service-60.bench", "/api/resource-8"), 200);
    await page.goto(`${given.admin}/ui/#/routes`);
    await shows(page, "main", "Routes 1000", "more rows; filter to see them");
    await eventually("the busiest route to be the first", async () => assert.equal(await first(), "service-97-3"));
    await fits(page, "routes");
  },

  "a filter finds one in a thousand, and keeps what is typed while figures move": async () => {
    await page.keyboard.press("/");
    await page.keyboard.type("service-42-7");
    await shows(page, "main", "Routes 1 of 1000", "service-42.bench", "/api/resource-7");
    const asked = given.admin;
    const rounds = page.waitForResponse((answer) => answer.url().startsWith(`${asked}/metrics`));
    await page.keyboard.type(" resource");
    await rounds;
    await shows(page, "main", "Routes 1 of 1000");
    assert.equal(await page.evaluate(() => document.activeElement.value), "service-42-7 resource");
  },

  "a heading sorts all of them, not those that are shown": async () => {
    await page.keyboard.press("Escape");
    await page.goto(`${given.admin}/ui/#/routes?sort-routes=route.desc`);
    await eventually("the last one by name", async () => assert.equal(await first(), "service-99-9"));
    await picture(page, "many-routes");
  },

  "endpoints of a hundred clusters": async () => {
    await page.goto(`${given.admin}/ui/#/endpoints?filter=cluster-73`);
    await shows(page, "main", "cluster-73");
    await fits(page, "endpoints");
  },

  "nothing went wrong": async () => assert.deepEqual(await page.wrong(), []),
});
console.log(`longest task of the browser: ${await page.evaluate(() => Math.round(window.longest))} ms`);
await browser.close();
