// Tables that sort and filter; on a narrow screen each row is a card.
//
// In: columns `{ id, title, value, show, num, wide }` and rows. Out: a table whose headings are buttons, with
// `aria-sort`. What is sorted and filtered stays when figures move, and stands in the address.

import { empty, h } from "./dom.js";
import { address, go } from "./main.js";

// More rows help nobody's eyes, and cost the browser dearly.
const MOST_ROWS = 500;

/** `key` tells rows apart; `none` is what stands there when there are no rows. */
export function table({ name, caption, columns, rows, key, none, sort, open }) {
  const { params } = address();
  const [by, direction] = (params.get(`sort-${name}`) ?? sort ?? "").split(".");
  const wanted = (params.get("filter") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => columns.map((column) => String(column.text?.(row) ?? column.value(row) ?? "")).join(" ").toLowerCase();
  let shown = wanted.length ? rows.filter((row) => wanted.every((word) => text(row).includes(word))) : rows;
  const column = columns.find((one) => one.id === by);
  if (column) {
    const sign = direction === "desc" ? -1 : 1;
    shown = [...shown].sort((a, b) => sign * compare(column.value(a), column.value(b)) || compare(key(a), key(b)));
  }
  const cut = shown.length - MOST_ROWS;
  const body =
    rows.length === 0
      ? h("tr", { key: "-none" }, h("td", { class: "none", colspan: columns.length }, none))
      : shown.length === 0
        ? h("tr", { key: "-none" }, h("td", { class: "none", colspan: columns.length }, empty("No row has this in it", "Clear the filter (Esc) to see all ", rows.length, ".")))
        : shown.slice(0, MOST_ROWS).flatMap((row) => {
            const line = h(
              "tr",
              { key: key(row), class: open?.level?.(row) },
              columns.map((one) =>
                h(one.head ? "th" : "td", { scope: one.head ? "row" : undefined, class: [one.num && "num", one.wide && "wide"].filter(Boolean).join(" ") || undefined, "data-label": one.title }, h("div", { class: "cell" }, one.show ? one.show(row) : (one.value(row) ?? "–"))),
              ),
            );
            const more = open?.more?.(row);
            return more ? [line, h("tr", { key: `${key(row)}\u0000more`, class: "more" }, h("td", { colspan: columns.length }, more))] : [line];
          });
  return h(
    "div",
    { class: "table-frame", key: name },
    h(
      "table",
      null,
      h("caption", null, caption, h("span", { class: "rows num" }, wanted.length && rows.length ? ` ${shown.length} of ${rows.length}` : rows.length ? ` ${rows.length}` : "")),
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          columns.map((one) =>
            h(
              "th",
              { scope: "col", class: one.num && "num", "aria-sort": one.id === by ? (direction === "desc" ? "descending" : "ascending") : undefined },
              h(
                "button",
                { type: "button", class: "sort", onclick: () => go({ [`sort-${name}`]: one.id === by && direction !== "desc" ? `${one.id}.desc` : one.id === by ? `${one.id}.asc` : one.num ? `${one.id}.desc` : `${one.id}.asc` }) },
                one.title,
                h("span", { class: "arrow", "aria-hidden": "true" }, one.id === by ? (direction === "desc" ? "▾" : "▴") : ""),
              ),
            ),
          ),
        ),
      ),
      h("tbody", null, body),
    ),
    cut > 0 ? h("p", { class: "hint" }, `${cut} more rows; filter to see them.`) : null,
  );
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}
