// The page where there is little to show: without traffic, and without a proxy.

import assert from "node:assert/strict";
import { accessible, fits, launch, open, picture, shows, steps } from "./browser.mjs";

const given = JSON.parse(process.env.OUTRIGGER_GIVEN);
const IDLE = {
  overview: ["No request ended in the last minute", "No request has failed", "Rate"],
  topology: ["Nobody has called yet", "Nobody was called yet"],
  routes: ["all", "everything"],
  endpoints: ["Endpoints 1", "healthy"],
  tap: ["Waiting for requests"],
  logs: ["No logs in this config"],
  secrets: ["No secrets in this config"],
  config: ["Not changed since the start"],
};
const BARE = {
  overview: ["All is well", "No proxy in this config", "Components"],
  topology: ["No proxy in this config"],
  routes: ["No proxy in this config"],
  endpoints: ["No proxy in this config"],
  tap: ["This config has no proxy section"],
  logs: ["Everything is delivered", "archive", "delivers"],
  secrets: ["No secrets in this config"],
  config: ["Not changed since the start", "stateDirectory"],
};

/** The others differ from what is judged beside traffic by a sentence. */
const JUDGED = ["overview", "topology", "tap"];

const browser = await launch();
for (const [name, admin, views] of [["idle", given.idle, IDLE], ["bare", given.bare, BARE]]) {
  const page = await open(browser, admin, { width: 360, height: 740, theme: "dark", allowed: ["status of 404"] });
  const all = Object.entries(views).map(([view, parts]) => [
    `${name}: ${view}`,
    async () => {
      await page.goto(`${admin}/ui/#/${view}`);
      const text = await shows(page, "main", ...parts);
      assert.doesNotMatch(text, /NaN|undefined|\[object|Infinity/);
      await fits(page, view);
      if (JUDGED.includes(view)) await accessible(page, view);
      await picture(page, `${name}-${view}`);
    },
  ]);
  await steps({ ...Object.fromEntries(all), [`${name}: nothing went wrong`]: async () => assert.deepEqual(await page.wrong(), []) });
}
await browser.close();
