// Numbers, times and names as people read them.

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(digits - 1);
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  let left = value;
  while (left >= 999.5 && at < units.length - 1) { left /= 1000; at += 1; }
  return `${at === 0 ? left : Number(left.toPrecision(3))} ${units[at]}`;
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(iso, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 60) return "just now";
  const [unit, size] = seconds >= 172800 ? ["d", 86400] : seconds >= 7200 ? ["h", 3600] : ["min", 60];
  return `${Math.floor(seconds / size)} ${unit} ago`;
}

export function moment(iso) {
  return iso ? new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }) : "–";
}

// A measured value in its unit; the unit of what is a plain ratio is not repeated.
export function quantity(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "fraction") return percent(value);
  if (unit === "bytes" || unit === "B") return bytes(value);
  if (unit === "s") return value < 1 ? `${number(1000 * value, 3)} ms` : `${number(value)} s`;
  return unit && unit !== "perplexity" ? `${number(value)} ${unit}` : number(value);
}

// Half the width of the interval that holds the true value with 95 %: Student's t by its expansion in the degrees of
// freedom (Abramowitz and Stegun 26.7.5, exact to a percent from 3 on).
export function halfWidth(stderr, freedom) {
  if (stderr === null || stderr === undefined) return null;
  const z = 1.959964;
  if (freedom === null || freedom === undefined) return z * stderr;
  if (freedom < 1) return null;
  if (freedom < 2) return 12.7062 * stderr;
  if (freedom < 3) return 4.30265 * stderr;
  const [z3, z5, z7] = [z ** 3, z ** 5, z ** 7];
  const t = z + (z3 + z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom ** 2)
    + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom ** 3);
  return t * stderr;
}

// The methods of a spec in the order of its stages, with what is asked for.
export const STAGES = ["score", "allocate", "prune", "grow", "refine", "train", "tune"];

export function methods(spec) {
  return STAGES.filter((stage) => spec[stage]).map((stage) => ({ stage, method: spec[stage].method }));
}

export function asked(spec) {
  const edit = spec.prune || spec.grow || {};
  const said = [];
  for (const [name, value] of Object.entries(edit)) {
    if (value === null) continue;
    if (name === "sparsity") said.push(percent(value, value * 100 % 1 ? 1 : 0));
    if (name === "blocks" && typeof value === "number") said.push(`${value} blocks`);
    if (name === "perplexity_ratio") said.push(`perplexity ≤ ${number(value)} ×`);
    if (name === "at_most") {
      for (const [what, bound] of Object.entries(value)) {
        if (bound !== null && ["parameters", "bytes", "macs", "decode_time"].includes(what)) said.push(`${what} ≤ ${number(bound)}`);
      }
    }
    if (name === "pattern" && value !== "unstructured") said.push(value);
  }
  return said.join(", ");
}

export function short(id) {
  return id ? `${id.slice(0, 4)}…${id.slice(-6)}` : "";
}
