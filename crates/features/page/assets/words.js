// Response flags in words, as docs/observability.md has them.

const FLAGS = {
  DPE: ["bad request", "the request breaks the protocol or a limit, or wants what is not supported here"],
  NR: ["no route", "no route matches, or the destination is not known"],
  FI: ["fault injected", "a filter of the route injects this fault"],
  UAEX: ["forbidden", "a route of CONNECT forbids it"],
  UH: ["no healthy endpoint", "the cluster has no endpoint, or none that may be used"],
  UF: ["cannot connect", "no connection to the endpoint: refused, timed out, or TLS failed"],
  UO: ["overflow", "a limit of the cluster is reached, or its adaptive concurrency sheds load"],
  RL: ["rate limited", "a rate limit of the route is reached"],
  DT: ["deadline passed", "the caller's deadline had passed already"],
  OM: ["overloaded", "Outrigger holds back: too many requests under way, or memory is short"],
  UC: ["connection closed", "the endpoint closed the connection before it answered"],
  UR: ["refused unseen", "the endpoint refused the request without looking at it"],
  UPE: ["invalid answer", "the endpoint's answer breaks the protocol"],
  UT: ["timed out", "the endpoint did not answer in time"],
  SI: ["stalled", "the client, or the stream, did not go on in time"],
  DC: ["client went away", "the client closed the connection before the answer"],
  LR: ["cut at the stop", "the request was cut at the end of a stop's time"],
  URX: ["retries exhausted", "it would have been tried again, but no try or budget was left"],
};

/** Two or three words for a flag, or for several with commas between. */
export function flagWords(flags) {
  return flags.split(",").filter(Boolean).map((flag) => FLAGS[flag]?.[0] ?? flag).join(", ");
}

/** A sentence for a flag. */
export function flagSentence(flag) {
  return FLAGS[flag]?.[1] ?? `response flag ${flag}`;
}

/** Flags for which the other side, or its user, is to blame: no sign that this pod is ill. */
export const CLIENTS = new Set(["DC", "DPE", "NR", "RL", "DT", "SI", "FI", "UAEX", "LR"]);

const CODES = {
  0: "no answer", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
  408: "Request Timeout", 409: "Conflict", 413: "Content Too Large", 429: "Too Many Requests", 499: "client closed",
  500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
};

/** A status with its name, where it has one that is known here. */
export function codeWords(code) {
  return CODES[code] ? `${code === "0" ? "" : `${code} `}${CODES[code]}` : String(code);
}

/** How good or bad an endpoint's health is. */
export const HEALTH = { healthy: "ok", unreachable: "warn", ejected: "bad", unhealthy: "bad" };

/** How good or bad a component's state is. */
export const STATES = { ready: "ok", degraded: "warn", waiting: "bad", failed: "bad", starting: "warn", pending: "warn", stopping: "warn", stopped: "off", disabled: "off" };

const CAUSES = {
  consecutive_5xx: "answers of 5xx in a row",
  consecutive_gateway_errors: "502, 503 or 504 in a row",
  consecutive_local_origin_failures: "no answers in a row",
  success_rate: "succeeds far less often than the others",
  retry_after: "asked to be left alone (Retry-After)",
};

/** Why an endpoint is out. */
export const causeWords = (cause) => CAUSES[cause] ?? cause;
