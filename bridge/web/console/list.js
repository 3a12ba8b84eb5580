// A list of any length: only the rows that can be seen, and a few beside them, are in the document.

import { h } from "./dom.js";

const BESIDE = 8; // rows above and below those that can be seen

// columns: [{ label, cell: (item) => Node or text, width: "2fr", small: hides it on a phone }]
export class List {
  constructor(label, columns, { height = 10 } = {}) {
    this._columns = columns;
    this._items = [];
    this._most = height;
    this._made = new Map();
    this._body = h("div", { class: "rows", role: "rowgroup" });
    this._scroller = h("div", { class: "scroller", tabindex: "0", role: "table", "aria-label": label, "aria-rowcount": "0" },
      h("div", { role: "rowgroup", class: "heads" },
        h("div", { role: "row", class: "row", "aria-rowindex": "1" },
          columns.map((c) => h("div", { role: "columnheader", class: c.small ? "cell small" : "cell" }, c.label)))),
      this._body);
    this._scroller.style.setProperty("--columns", columns.map((c) => c.width ?? "1fr").join(" "));
    this._scroller.addEventListener("scroll", () => this._draw(), { passive: true });
    this._observer = new ResizeObserver(() => this._draw());
    this._observer.observe(this._scroller);
    this.element = this._scroller;
  }

  get length() { return this._items.length; }

  // Shows these. An item keeps its row as long as it is the same object.
  show(items) {
    this._items = items;
    this._scroller.style.setProperty("--shown", Math.min(this._most, items.length));
    this._scroller.setAttribute("aria-rowcount", String(items.length + 1));
    for (const item of this._made.keys()) if (!this._shown?.has(item)) this._drop(item);
    this._draw();
  }

  // Draws every row anew, since cells depend on more than their item.
  refresh() {
    for (const item of [...this._made.keys()]) this._drop(item);
    this._draw();
  }

  close() { this._observer.disconnect(); }

  _drop(item) {
    this._made.get(item)?.remove();
    this._made.delete(item);
  }

  _draw() {
    const height = parseFloat(getComputedStyle(this._scroller).getPropertyValue("--row"))
      * parseFloat(getComputedStyle(document.documentElement).fontSize);
    this._body.style.height = `${this._items.length * height}px`;
    const first = Math.max(0, Math.floor(this._scroller.scrollTop / height) - BESIDE);
    const last = Math.min(this._items.length, Math.ceil((this._scroller.scrollTop + this._scroller.clientHeight) / height) + BESIDE);
    const shown = new Set(this._items.slice(first, last));
    for (const item of [...this._made.keys()]) if (!shown.has(item)) this._drop(item);
    let before = null;
    for (let i = first; i < last; i += 1) {
      const item = this._items[i];
      let row = this._made.get(item);
      if (!row) {
        row = this._row(item);
        this._made.set(item, row);
      }
      row.style.transform = `translateY(${i * height}px)`;
      row.setAttribute("aria-rowindex", String(i + 2));
      // In the order of the list, so that the keyboard walks down; moved only if it is elsewhere, which keeps the focus.
      const place = before ? before.nextSibling : this._body.firstChild;
      if (place !== row) this._body.insertBefore(row, place);
      before = row;
    }
    this._shown = shown;
  }

  _row(item) {
    return h("div", { role: "row", class: "row" }, this._columns.map((c) => {
      const made = c.cell(item);
      const cell = h("div", { role: "cell", class: c.small ? "cell small" : "cell" }, made ?? "");
      if (typeof made === "string" && made.length > 12) cell.title = made;
      return cell;
    }));
  }
}
