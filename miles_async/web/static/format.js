// Numbers and times for a reader. What is not known is a dash.

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toFixed(size >= 100 ? 1 : digits)));
}

export function share(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : `${Math.round(value * 100)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.floor(seconds % 60);
  if (minutes < 90) return `${minutes} min${rest ? ` ${rest} s` : ""}`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

export function when(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString("en-GB") : "–";
}

// Values between two bounds at which an axis has its marks.
export function ticks(least, most, count) {
  if (!(most > least)) return [least];
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const sizes = power === 1 ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]; // whole numbers stay whole
  const step = sizes.map((n) => n * power).find((size) => size >= rough);
  const found = [];
  for (let n = Math.ceil(least / step - 1e-9); n * step <= most + step * 1e-9; n++) found.push(n * step);
  return found;
}

const MINUTES = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1440, 2880].map((n) => n * 60);

// The same for seconds: whole minutes and hours where there are many.
export function moments(least, most, count) {
  const rough = (most - least) / count;
  if (rough <= 50) return ticks(least, most, count);
  const step = MINUTES.find((size) => size >= rough) ?? Math.ceil(rough / 86400) * 86400;
  const found = [];
  for (let n = Math.ceil(least / step); n * step <= most; n++) found.push(n * step);
  return found;
}
