// Lines over time, drawn as SVG: no library, no canvas, sharp at any size.
//
// In: points, and what to draw of each. Out: a figure with its newest values as text, for those who
// see no lines. Lines differ by dash and label, not by colour alone; a gap in the data is a gap.

import { h } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 150;
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 10, 22];
// Two looks further apart than this were not one after the other.
const GAP_MS = 15_000;

const widths = new WeakMap();
let redraw = () => {};
const observer = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) widths.set(target, Math.floor(contentRect.width));
  redraw();
});

/** Where the pointer is, shared by all charts so that they can be read together. */
let pointed = null;

export function onChartChange(tell) {
  redraw = tell;
}

/**
 * A chart. `lines`: `{ label, value: (point) => number | null }`; `format` writes a value; `most` is the least that the
 * scale reaches, `top` where it ends at any rate.
 */
export function chart({ id, title, unit, points, range, until, lines, format, most = 0, top, note }) {
  const element = document.getElementById(id);
  if (element && !widths.has(element)) {
    widths.set(element, Math.floor(element.getBoundingClientRect().width));
    observer.observe(element);
  }
  const width = (element && widths.get(element)) || 480;
  const from = until - range;
  const shown = points.filter((point) => point.t >= from);
  const high = top ?? nice(Math.max(most, ...shown.flatMap((point) => lines.map((line) => line.value(point) ?? 0))));
  const x = (t) => LEFT + ((t - from) / range) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - Math.min(value, high) / high) * (HEIGHT - TOP - BOTTOM);
  const last = shown.at(-1);
  const under = pointed === null ? null : nearest(shown, from + ((pointed - LEFT) / (width - LEFT - RIGHT)) * range);
  const read = under ?? last;
  const words = lines.map((line) => `${line.label} ${format(last ? line.value(last) : null)}`).join(", ");
  const point = (event) => {
    pointed = event.clientX - event.currentTarget.getBoundingClientRect().left;
    redraw();
  };
  const leave = () => {
    pointed = null;
    redraw();
  };
  return h(
    "figure",
    { class: "card chart", key: id },
    h(
      "figcaption",
      null,
      h("span", { class: "chart-title" }, title, unit ? h("span", { class: "unit" }, ` ${unit}`) : null),
      h("span", { class: "chart-time num" }, under ? clock(under.t) : ""),
      h(
        "span",
        { class: "legend" },
        lines.map((line, index) =>
          h(
            "span",
            { class: "legend-item" },
            h("svg", { class: `key line-${index}`, viewBox: "0 0 18 8", "aria-hidden": "true" }, h("path", { d: "M0 4h18" })),
            h("span", null, line.label),
            h("b", { class: "num" }, format(read ? line.value(read) : null)),
          ),
        ),
      ),
    ),
    h(
      "div",
      { class: "plot", id, onpointermove: point, onpointerleave: leave },
      h(
        "svg",
        { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": last ? `${title}: ${words}` : `${title}: no data yet` },
        [0, 0.5, 1].map((share) => [
          h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(high * share), y2: y(high * share) }),
          h("text", { class: "tick", x: LEFT - 6, y: y(high * share) + 4, "text-anchor": "end" }, format(high * share)),
        ]),
        [0, 0.5, 1].map((share) =>
          h(
            "text",
            { class: "tick", x: x(from + range * share), y: HEIGHT - 5, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" },
            share === 1 ? "now" : `−${minutes(range * (1 - share))}`,
          ),
        ),
        lines.map((line, index) => h("path", { class: `line line-${index}`, d: path(shown, line.value, x, y) })),
        under ? h("line", { class: "cursor", x1: x(under.t), x2: x(under.t), y1: TOP, y2: HEIGHT - BOTTOM }) : null,
        lines.map((line, index) => {
          const value = read && line.value(read);
          return value === null || value === undefined ? null : h("circle", { class: `dot line-${index}`, cx: x(read.t), cy: y(value), r: 3 });
        }),
      ),
      shown.length === 0 ? h("p", { class: "plot-empty" }, note ?? "No data yet") : null,
    ),
  );
}

function path(points, value, x, y) {
  let text = "";
  let before = null;
  for (const point of points) {
    const it = value(point);
    if (it === null || it === undefined) {
      before = null;
      continue;
    }
    const joins = before !== null && point.t - before < GAP_MS;
    // A point without neighbours is a dot.
    text += `${joins ? "L" : "M"}${x(point.t).toFixed(1)} ${y(it).toFixed(1)}${joins ? "" : "h.01"}`;
    before = point.t;
  }
  return text;
}

function nearest(points, t) {
  let best = null;
  for (const point of points) if (best === null || Math.abs(point.t - t) < Math.abs(best.t - t)) best = point;
  return best;
}

function minutes(ms) {
  return ms < 60_000 ? `${Math.round(ms / 1000)} s` : `${ms / 60_000} min`;
}

/** The next round number. */
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 1.0001) ?? 10 * power;
}
