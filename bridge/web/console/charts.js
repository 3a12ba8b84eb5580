// Charts over the last hour. uPlot draws; the legend is text, with the newest values or those under the pointer.

import uPlot from "./uPlot.esm.js";
import { h, fill, heading, span } from "./dom.js";

const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
const HEIGHT = 168;

export const numbers = (value) => (value === null || value === undefined ? "–"
  : value >= 100 ? Math.round(value).toLocaleString() : String(Math.round(value * 10) / 10));
export const times = (value) => span(value);

// The quantile of counts by size, interpolated within its size as Prometheus does; in milliseconds, null without any.
export function quantile(q, counts, bounds) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (!total) return null;
  let left = q * total;
  for (let i = 0; i < counts.length; i += 1) {
    if (left <= counts[i] || i === counts.length - 1) {
      if (i >= bounds.length) return bounds[bounds.length - 1] * 1000;
      const low = i ? bounds[i - 1] : 0;
      return (low + (bounds[i] - low) * (counts[i] ? left / counts[i] : 1)) * 1000;
    }
    left -= counts[i];
  }
  return null;
}

export class Chart {
  // values: how a number is written; colours: the number of a colour by the name of its series. Series come with `show`.
  constructor(title, term, { values = numbers, wide = false, colours = {} } = {}) {
    this._title = title;
    this._values = values;
    this._colours = colours;
    this._names = [];
    this._data = [[]];
    this._legend = h("ul", { class: "legend" });
    this._canvas = h("div", { class: "plot", role: "img", "aria-label": title });
    this._none = h("p", { class: "none" }, "Nothing in the last hour.");
    this.element = h("section", { class: wide ? "card chart wide" : "card chart" }, heading(title, term), this._canvas, this._none, this._legend);
    this._observer = new ResizeObserver(() => this._fit());
    this._observer.observe(this._canvas);
    this._scheme = matchMedia("(prefers-color-scheme: dark)");
    this._redraw = () => this._make();
    this._scheme.addEventListener("change", this._redraw);
  }

  close() {
    this._observer.disconnect();
    this._scheme.removeEventListener("change", this._redraw);
    this._plot?.destroy();
  }

  // at: seconds since the epoch; series: { name: values, one for each moment, null for none }
  show(at, series) {
    const names = Object.keys(series);
    this._data = [at, ...Object.values(series)];
    const nothing = !at.length || !names.length || this._data.slice(1).every((values) => values.every((v) => v === null));
    this._none.hidden = !nothing;
    this._canvas.hidden = nothing;
    const same = names.join() === this._names.join() && this._plot;
    this._names = names;
    if (nothing) { this._plot?.destroy(); this._plot = null; this._label(null); return; }
    if (same) this._plot.setData(this._data);
    else this._make();
    this._label(null);
  }

  _fit() {
    const width = this._canvas.clientWidth;
    if (!width || this._canvas.hidden) return;
    if (!this._plot && this._names.length) this._make();
    else this._plot?.setSize({ width, height: HEIGHT });
  }

  _place(name, i) { return this._colours[name] ?? i % COLOURS.length; }

  _colour(name, i) { return getComputedStyle(document.documentElement).getPropertyValue(COLOURS[this._place(name, i)]).trim(); }

  _make() {
    this._plot?.destroy();
    this._plot = null;
    const width = this._canvas.clientWidth;
    if (!width || !this._names.length) return;
    const style = getComputedStyle(document.documentElement);
    const soft = style.getPropertyValue("--soft").trim();
    const grid = { stroke: style.getPropertyValue("--line").trim(), width: 1 };
    const axis = { stroke: soft, grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const [first, last] = [this._data[0][0], this._data[0].at(-1)];
    const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false,
      ...(last - first < 300 ? { second: "2-digit" } : {}) });
    this._plot = new uPlot({
      width, height: HEIGHT, padding: [8, 26, 0, 0], legend: { show: false },
      cursor: { y: false, points: { size: 7 } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.08, 1)] } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((t) => clock.format(new Date(t * 1000))), space: 70, size: 28 },
        { ...axis, size: 58, values: (_, ticks) => ticks.map((t) => (t === 0 ? "0" : this._values(t))), space: 34 },
      ],
      series: [{}, ...this._names.map((name, i) => ({ label: name, stroke: this._colour(name, i), width: 2, spanGaps: false,
        // A value without neighbours is no line.
        points: { show: this._values === times, size: 4, fill: this._colour(name, i) } }))],
      hooks: { setCursor: [(plot) => this._label(plot.cursor.idx ?? null)] },
    }, this._data, this._canvas);
  }

  _label(place) {
    const last = this._data[0].length - 1;
    const at = place === null || place === undefined ? last : place;
    const told = this._names.map((name, i) => [name, last < 0 ? "–" : this._values(this._data[i + 1][at])]);
    const when = place !== null && at >= 0 && at !== last
      ? new Date(this._data[0][at] * 1000).toLocaleTimeString(undefined, { hour12: false }) : "now";
    fill(this._legend, told.map(([name, value], i) => h("li", {},
      h("span", { class: `key k${this._place(name, i) + 1}`, "aria-hidden": "true" }), `${name} `, h("b", {}, value))),
      told.length ? h("li", { class: "soft" }, when) : null);
    this._canvas.setAttribute("aria-label", `${this._title}, over the last hour. Now: ${told.map((t) => t.join(" ")).join(", ") || "nothing"}.`);
  }
}
