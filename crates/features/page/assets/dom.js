// From plain objects to the document: `h` describes, `render` makes it so.
//
// Promise: texts are set as text and never read as markup; an element whose description did not
// change is not touched, so that focus, selection and scroll positions stay while figures move.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "text", "rect", "circle", "polyline", "title"]);

/** Describes an element. `key` tells it from its siblings; `on…` are listeners; false, null and undefined are nothing. */
export function h(tag, props, ...children) {
  props ??= {};
  return { tag, props, key: props.key, children };
}

/** Makes the children of `parent` what is described. */
export function render(parent, children) {
  const kept = new Map();
  for (const node of parent.childNodes) if (node.outriggerKey !== undefined) kept.set(node.outriggerKey, node);
  let next = parent.firstChild;
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    let node;
    if (typeof child === "object") {
      node = child.key === undefined ? (fits(next, child) ? next : null) : kept.get(child.key);
      if (node && node.localName !== child.tag) node = null;
      node ??= create(parent, child);
      apply(node, child);
    } else {
      node = next?.nodeType === Node.TEXT_NODE ? next : document.createTextNode("");
      const text = String(child);
      if (node.data !== text) node.data = text;
    }
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function fits(node, child) {
  return node?.nodeType === Node.ELEMENT_NODE && node.localName === child.tag && node.outriggerKey === undefined;
}

function create(parent, child) {
  const inSvg = child.tag === "svg" || (parent.namespaceURI === SVG && SVG_TAGS.has(child.tag));
  const node = inSvg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
  if (child.key !== undefined) node.outriggerKey = child.key;
  node.outriggerProps = {};
  return node;
}

function apply(node, { props, children }) {
  const before = node.outriggerProps;
  for (const name in before) if (!(name in props)) set(node, name, undefined, before[name]);
  for (const name in props) if (props[name] !== before[name] || name === "value") set(node, name, props[name], before[name]);
  node.outriggerProps = props;
  render(node, children);
}

function set(node, name, value, before) {
  if (name === "key") return;
  if (name.startsWith("on")) {
    const event = name.slice(2);
    if (before) node.removeEventListener(event, before);
    if (value) node.addEventListener(event, value);
  } else if (name === "vars") {
    for (const [property, text] of Object.entries(value ?? {})) node.style.setProperty(property, text);
  } else if (name === "value") {
    if (node !== document.activeElement && node.value !== (value ?? "")) node.value = value ?? "";
  } else if (name === "checked" || name === "open" || name === "selected") {
    node[name] = Boolean(value);
  } else if (value === undefined || value === null || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? "" : String(value));
  }
}

/** A sign that stands beside a word, never alone. */
export function sign(level) {
  const shapes = {
    ok: h("path", { d: "M3.5 8.5l3 3 6-7" }),
    warn: [h("path", { d: "M8 2.2L14.6 13.6H1.4z" }), h("path", { d: "M8 6.4v3.2M8 11.6v.1" })],
    bad: [h("circle", { cx: 8, cy: 8, r: 6.3 }), h("path", { d: "M5.6 5.6l4.8 4.8M10.4 5.6l-4.8 4.8" })],
    off: h("path", { d: "M4 8h8" }),
  };
  return h("svg", { class: `sign ${level}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, shapes[level]);
}

/** A word with its sign. */
export function state(level, ...words) {
  return h("span", { class: `state ${level}` }, sign(level), h("span", null, ...words));
}

/** What stands where there is nothing to show, and what to do about it. */
export function empty(title, ...more) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), more.length ? h("p", null, ...more) : null);
}

/** How full something is. */
export function meter(share, label) {
  const level = share >= 0.95 ? "bad" : share >= 0.8 ? "warn" : "ok";
  const percent = Math.min(100, Math.max(0, share * 100));
  return h(
    "span",
    { class: `meter ${level}`, role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(percent), "aria-label": label },
    h("span", { class: "meter-fill", vars: { "--share": `${percent}%` } }),
  );
}
