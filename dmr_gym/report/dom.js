"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/* Characters that could hide or turn text around are shown by their number. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) =>
  String(text).replace(HIDDEN, (mark) => `⟨U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(visible(child)));
  }
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const g = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => value !== null && value !== undefined;
const fixed = (value, digits) => (known(value) ? value.toFixed(digits).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "−") : "–");
const percent = (value, digits = 1) => (known(value) ? `${fixed(100 * value, digits)} %` : "–");
const DIGITS = { s: 2, J: 2, $: 6 };
const amount = (value, unit) => (known(value) ? `${fixed(value, DIGITS[unit] ?? 2)} ${unit}` : "–");
const short = (value) => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5) || value === 0
  ? String(Number(value.toPrecision(3))) : value.toExponential(1);
const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/* 95 % interval of a share by Wilson's formula. */
function wilson(hits, number) {
  if (!number) return [0, 1];
  const z = 1.96, p = hits / number, d = 1 + z * z / number;
  const middle = (p + z * z / (2 * number)) / d;
  const half = z * Math.sqrt(p * (1 - p) / number + z * z / (4 * number * number)) / d;
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function table(columns, rows, left = 1, kinds = []) {
  const side = (index) => (index < left ? "left" : null);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table" }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: side(i) }, name)))),
    h("tbody", {}, rows.map((row, r) => h("tr", { class: kinds[r] || null }, row.map((cell, i) =>
      i === 0 && left
        ? h("th", { scope: "row", class: side(i) }, kinds[r] && MARKS[kinds[r]] ? mark(kinds[r]) : null, cell)
        : h("td", { class: side(i) }, cell)))))));
}

const numbers = (columns, rows, left = 1) =>
  h("details", {}, h("summary", {}, "Numbers of this figure"), table(columns, rows, left));
