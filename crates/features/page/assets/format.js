// Numbers for people: always with their unit, never more exact than they are.

const DASH = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** `1234` as `1,234`; large ones as `12.3k`. */
export function count(value) {
  if (!known(value)) return DASH;
  if (value < 100_000) return Math.round(value).toLocaleString("en");
  return short(value);
}

function short(value) {
  const units = ["", "k", "M", "G", "T"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)}${units[unit]}`;
}

/** Per second. */
export function rate(value) {
  if (!known(value)) return DASH;
  if (value === 0) return "0/s";
  if (value < 0.1) return "<0.1/s";
  return value < 100 ? `${value.toFixed(1)}/s` : `${short(value)}/s`;
}

/** A share as percent; what is not all is never shown as 100 %, and what is not none never as 0 %. */
export function percent(share) {
  if (!known(share)) return DASH;
  if (share >= 1) return "100 %";
  if (share <= 0) return "0 %";
  const value = share * 100;
  if (value > 99) return `${Math.min(99.99, Math.floor(value * 100) / 100).toFixed(2)} %`;
  if (value < 1) return value < 0.1 ? "<0.1 %" : `${value.toFixed(1)} %`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

/** Seconds that something took. */
export function latency(seconds) {
  if (!known(seconds)) return DASH;
  const ms = seconds * 1000;
  if (ms === 0) return "0 ms";
  if (ms < 1) return `${Math.max(1, Math.round(ms * 1000))} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return seconds < 10 ? `${seconds.toFixed(2)} s` : `${Math.round(seconds)} s`;
}

/** A span of time, in its two largest units. */
export function span(seconds) {
  if (!known(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  return parts
    .slice(first, first + 2)
    .filter(([number]) => number > 0)
    .map(([number, unit]) => `${number} ${unit}`)
    .join(" ");
}

export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** The time of day of a moment in ms, as the browser's zone has it. */
export function clock(at, exact) {
  const date = new Date(at);
  const two = (number) => String(number).padStart(2, "0");
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return exact ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

/** The part of a SPIFFE ID that tells peers apart. */
export function peer(id) {
  const parts = /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/(.+)$/.exec(id);
  return parts ? `${parts[2]}.${parts[1]}` : id.replace(/^spiffe:\/\//, "");
}
