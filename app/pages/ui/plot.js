// Scales and axes of plots: SVG, with ticks at round numbers, titles and units.
import { html, useLayoutEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { number } from "./format.js";

export const HEIGHT = 300;
export const LEFT = 64;
export const RIGHT = 16;
export const TOP = 14;
export const BOTTOM = 48;

// Round numbers around the values, first and last at or beyond them.
export function ticks(values, about = 6) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (!(high > low)) {
    const pad = Math.abs(low) * 0.05 || 1;
    [low, high] = [low - pad, high + pad];
  }
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}

export function scale(marks, from, to) {
  const [low, high] = [marks[0], marks.at(-1)];
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

// The width of the element of `ref` in pixels, followed as it changes: a plot's text has the size of the page's text.
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(640);
  useLayoutEffect(() => {
    const look = () => ref.current && setWidth(Math.max(260, Math.round(ref.current.clientWidth)));
    const observer = new ResizeObserver(look);
    observer.observe(ref.current);
    look();
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

export function frame(xTicks, yTicks, width, height = HEIGHT) {
  return { x: scale(xTicks, LEFT, width - RIGHT), y: scale(yTicks, height - BOTTOM, TOP), xTicks, yTicks, width, height };
}

export function Axes({ of, x, y }) {
  const { xTicks, yTicks, width, height } = of;
  const floor = height - BOTTOM;
  return html`<g aria-hidden="true">
    ${yTicks.map((at) => html`<line class="grid" x1=${LEFT} x2=${width - RIGHT} y1=${of.y(at)} y2=${of.y(at)} /><text x=${LEFT - 7} y=${of.y(at) + 4} text-anchor="end">${number(at, 9)}</text>`)}
    ${xTicks.map((at) => html`<line class="axis" x1=${of.x(at)} x2=${of.x(at)} y1=${floor} y2=${floor + 4} /><text x=${of.x(at)} y=${floor + 17} text-anchor="middle">${number(at, 9)}</text>`)}
    <line class="axis" x1=${LEFT} x2=${width - RIGHT} y1=${floor} y2=${floor} /><line class="axis" x1=${LEFT} x2=${LEFT} y1=${TOP} y2=${floor} />
    <text class="title" x=${(LEFT + width - RIGHT) / 2} y=${height - 8} text-anchor="middle">${x}</text>
    <text class="title" transform=${`translate(13 ${(TOP + floor) / 2}) rotate(-90)`} text-anchor="middle">${y}</text>
  </g>`;
}

// Shapes of marks: a series is told from another by shape as well as by colour.
export function shape(kind, x, y, size = 5) {
  const r = size;
  const paths = [
    `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
    `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    `M${x} ${y - 1.2 * r}L${x + 1.15 * r} ${y + 0.9 * r}H${x - 1.15 * r}Z`,
    `M${x} ${y - 1.35 * r}L${x + 1.35 * r} ${y}L${x} ${y + 1.35 * r}L${x - 1.35 * r} ${y}Z`,
    `M${x} ${y + 1.2 * r}L${x + 1.15 * r} ${y - 0.9 * r}H${x - 1.15 * r}Z`,
    `M${x - r} ${y - 0.4 * r}h${0.6 * r}v${-0.6 * r}h${0.8 * r}v${0.6 * r}h${0.6 * r}v${0.8 * r}h${-0.6 * r}v${0.6 * r}h${-0.8 * r}v${-0.6 * r}h${-0.6 * r}Z`,
  ];
  return paths[kind % paths.length];
}

export const dash = (kind) => ["", "6 3", "2 3", "8 3 2 3", "12 4", "4 2 1 2", "1 2", "10 2 2 2 2 2"][kind % 8];
