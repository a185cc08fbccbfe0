// What both pages say about a camera.

// Words and shapes, so that nobody has to tell colours apart.
export const SHAPES = { WAITING: "○", LIVE: "●", STALE: "▲", GONE: "■" };

// Not again what is there already: a reader of screens would say it again.
export function write(element, content) {
  if (element.textContent !== content) element.textContent = content;
}

export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 100) return `${whole} s`;
  if (whole < 100 * 60) return `${Math.floor(whole / 60)} min`;
  if (whole < 48 * 3600) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86400)} days`;
}

export function latency(row) {
  if (row.latency_ms === null) return "";
  const digits = row.latency_error_ms < 1 ? 1 : 0;
  return `${row.latency_ms.toFixed(digits)} ±${row.latency_error_ms.toFixed(digits)} ms`;
}

// What is odd about a camera whose pictures come.
export function oddity(row) {
  if (row.rival) return `${row.rival} has this name too, and is refused`;
  return row.still_s ? `the same picture for ${span(row.still_s)}` : "";
}

export function summary(rows) {
  const count = (state) => rows.filter((row) => row.state === state).length;
  const troubled = ["STALE", "GONE", "WAITING"].filter(count).map((state) => `${SHAPES[state]} ${count(state)} ${state}`);
  return rows.length ? [`${SHAPES.LIVE} ${count("LIVE")} of ${rows.length} LIVE`, ...troubled].join(" · ") : "";
}
