// What `/metrics` said, one look after the other: 15 minutes of it, bounded, in the browser.
//
// In: exposition text. Out: points for charts, and what happened within a window for tables. The
// sidecar counts once for all; rates and quantiles are worked out here, while somebody looks.

const KEEP_MS = 15 * 60_000;
// Beyond these, series are not followed: a page that cannot keep up helps nobody.
const MOST_SERIES = 40_000;
const FAMILIES = /^(?:outrigger_(?:http_|grpc_requests|tcp_connections_closed|downstream_connections_active|upstream_connections_active|concurrency_(?:limit_)?requests|proxy_buffer_(?:limit_)?bytes|metrics_series|trace_buffer|identity_not_after|taps_active|logs_|config_generation|retries_total|circuit_breaker_refusals|outlier_ejections)|process_(?:resident_memory_bytes|start_time_seconds|cpu_seconds_total))/;
const GRPC_FAILURES = new Set(["2", "4", "12", "13", "14", "15"]);

export class Figures {
  constructor() {
    this.forget();
  }

  /** Begins anew, as the process did. */
  forget() {
    this.series = new Map();
    this.slots = 0;
    this.families = new Map();
    this.looks = [];
    this.points = [];
    this.truncated = false;
  }

  /** Takes a look at time `t` in ms. */
  take(text, t) {
    const values = new Float64Array(this.series.size + 256);
    let look = { t, values };
    for (const line of text.split("\n")) {
      if (line === "" || line[0] === "#") continue;
      const end = line.lastIndexOf(" ");
      const name = line.slice(0, end);
      let slot = this.series.get(name);
      if (slot === undefined) {
        slot = this.follow(name);
        if (slot === -1) continue;
      } else if (slot === -1) continue;
      if (slot >= look.values.length) {
        const larger = new Float64Array(slot * 2);
        larger.set(look.values);
        look = { t, values: larger };
      }
      look.values[slot] = Number(line.slice(end + 1));
    }
    const before = this.looks.at(-1);
    const started = (one) => one && this.sum("process_start_time_seconds", one);
    if (before && started(before) !== started(look)) {
      // Another process answers: nothing of before can be compared.
      this.forget();
      return this.take(text, t);
    }
    this.looks.push(look);
    if (before) this.points.push(this.point(before, look));
    this.thin(t);
  }

  follow(name) {
    if (!FAMILIES.test(name)) {
      if (this.series.size < MOST_SERIES) this.series.set(name, -1);
      return -1;
    }
    if (this.series.size >= MOST_SERIES) {
      this.truncated = true;
      return -1;
    }
    const slot = (this.slots += 1);
    this.series.set(name, slot);
    const brace = name.indexOf("{");
    const family = brace < 0 ? name : name.slice(0, brace);
    const labels = brace < 0 ? {} : readLabels(name.slice(brace + 1, -1));
    if (!this.families.has(family)) this.families.set(family, []);
    this.families.get(family).push({ slot, labels });
    return slot;
  }

  /** Keeps every look of the last minute, and one in 15 s of those before. */
  thin(now) {
    let last = -Infinity;
    this.looks = this.looks.filter((look, index) => {
      const age = now - look.t;
      const keep = age <= KEEP_MS && (age <= 60_000 || look.t - last >= 15_000 || index === this.looks.length - 1);
      if (keep) last = look.t;
      return keep;
    });
    while (this.points.length && now - this.points[0].t > KEEP_MS) this.points.shift();
  }

  get now() {
    return this.looks.at(-1);
  }

  /** The look closest to `ms` ago. */
  ago(ms) {
    const at = (this.now?.t ?? 0) - ms;
    return this.looks.find((look) => look.t >= at) ?? this.now;
  }

  of(family) {
    return this.families.get(family) ?? [];
  }

  /** The sum over a family's series that fit, at one look. */
  sum(family, look = this.now, fits = () => true) {
    let sum = 0;
    if (look) for (const one of this.of(family)) if (fits(one.labels)) sum += look.values[one.slot] || 0;
    return sum;
  }

  /** How much a family's series that fit grew between two looks. */
  grew(family, before, after, fits = () => true) {
    let sum = 0;
    for (const one of this.of(family)) if (fits(one.labels)) sum += growth(one, before, after);
    return sum;
  }

  /** One step of the charts. */
  point(before, after) {
    const seconds = Math.max(0.001, (after.t - before.t) / 1000);
    const point = { t: after.t, seconds };
    for (const direction of ["inbound", "outbound"]) {
      const fits = (labels) => labels.direction === direction;
      const { requests, failed } = this.outcome(before, after, fits);
      point[direction] = requests / seconds;
      point[`${direction}Success`] = requests ? 1 - failed / requests : null;
    }
    const { requests, failed } = this.outcome(before, after, () => true);
    Object.assign(point, { requests, failed, success: requests ? 1 - failed / requests : null });
    [point.p50, point.p95, point.p99] = this.quantiles(before, after, () => true);
    point.tcp = this.grew("outrigger_tcp_connections_closed_total", before, after) / seconds;
    return point;
  }

  /** Requests between two looks, and how many of them failed: 5xx, no answer, or a gRPC status that blames the server. */
  outcome(before, after, fits) {
    let requests = 0;
    let failed = 0;
    for (const one of this.of("outrigger_http_requests_total")) {
      if (!fits(one.labels)) continue;
      const more = growth(one, before, after);
      requests += more;
      if (isFailure(one.labels.code)) failed += more;
    }
    for (const one of this.of("outrigger_grpc_requests_total")) {
      if (fits(one.labels) && GRPC_FAILURES.has(one.labels.grpc_status)) failed += growth(one, before, after);
    }
    return { requests, failed: Math.min(failed, requests) };
  }

  /** p50, p95 and p99 of the requests between two looks, in seconds. */
  quantiles(before, after, fits) {
    return this.quantilesOf(this.of("outrigger_http_request_duration_seconds_bucket").filter((one) => fits(one.labels)), before, after);
  }

  /** The same, of some buckets' series. */
  quantilesOf(series, before, after) {
    const bounds = new Map();
    for (const one of series) {
      const bound = one.labels.le === "+Inf" ? Infinity : Number(one.labels.le);
      bounds.set(bound, (bounds.get(bound) ?? 0) + growth(one, before, after));
    }
    const buckets = [...bounds].sort(([a], [b]) => a - b);
    return [0.5, 0.95, 0.99].map((q) => quantile(q, buckets));
  }

  /** Rows by the values of some labels: requests and failures within the last `ms`, and since the start. */
  rows(labels, ms) {
    const now = this.now;
    if (!now) return new Map();
    const from = this.ago(ms);
    const seconds = (now.t - from.t) / 1000;
    const rows = new Map();
    const row = (one) => {
      const key = labels.map((label) => one.labels[label] ?? "").join("\u0000");
      if (!rows.has(key)) {
        const names = Object.fromEntries(labels.map((label) => [label, one.labels[label] ?? ""]));
        rows.set(key, { ...names, total: 0, totalFailed: 0, requests: 0, failed: 0, flags: new Map(), codes: new Map(), seconds });
      }
      return rows.get(key);
    };
    for (const one of this.of("outrigger_http_requests_total")) {
      const it = row(one);
      const [all, more] = [now.values[one.slot] || 0, growth(one, from, now)];
      it.total += all;
      it.requests += more;
      if (isFailure(one.labels.code)) {
        it.totalFailed += all;
        it.failed += more;
        add(it.codes, one.labels.code, more, all);
      }
    }
    for (const one of this.of("outrigger_grpc_requests_total")) {
      if (!GRPC_FAILURES.has(one.labels.grpc_status)) continue;
      const it = row(one);
      it.totalFailed += now.values[one.slot] || 0;
      it.failed += growth(one, from, now);
    }
    for (const one of this.of("outrigger_http_response_flags_total")) {
      add(row(one).flags, one.labels.flag, growth(one, from, now), now.values[one.slot] || 0);
    }
    for (const it of rows.values()) {
      it.failed = Math.min(it.failed, it.requests);
      it.rate = seconds > 0 ? it.requests / seconds : null;
      it.success = it.requests > 0 ? 1 - it.failed / it.requests : null;
    }
    return rows;
  }
}

function add(map, key, more, all) {
  const it = map.get(key) ?? { more: 0, all: 0 };
  it.more += more;
  it.all += all;
  map.set(key, it);
}

const isFailure = (code) => code === "0" || code?.[0] === "5";

function growth(one, before, after) {
  return Math.max(0, (after.values[one.slot] || 0) - (before.values[one.slot] || 0));
}

/** As Prometheus' `histogram_quantile` has it, from cumulative counts. */
function quantile(q, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  const index = buckets.findIndex(([, count]) => count >= rank);
  const [bound, count] = buckets[index];
  const [lower, below] = index > 0 ? buckets[index - 1] : [0, 0];
  if (bound === Infinity) return lower;
  return lower + ((bound - lower) * (rank - below)) / Math.max(1e-9, count - below);
}

function readLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
  }
  return labels;
}
