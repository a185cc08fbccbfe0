// The page for whoever runs the fleet: a row a camera, with curves of the last minutes, and a row a viewer.

import { SHAPES, latency, oddity, span, summary, write } from "./states.js";

const RETRY_MS = 2000;
const PATIENCE_MS = 10000;
const CURVE = { width: 80, height: 22 };
const SVG = "http://www.w3.org/2000/svg";

const notice = document.getElementById("notice");
let page = null; // which one the hub has
let history = { every_s: 2, points: 150, cameras: {} };

const size = (bytes) => {
  const units = ["B", "kB", "MB", "GB"];
  const power = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1000 ** power).toFixed(power && bytes / 1000 ** power < 10 ? 1 : 0)} ${units[power]}`;
};
const known = (value, form = String) => (value === null || value === undefined ? "–" : form(value));
const short = (release) => release.replace(/(\+.{8}).+/, "$1"); // enough to tell releases apart
const count = (value) => value.toLocaleString("en").replaceAll(",", " ");

function curve(values, what) {
  const top = Math.max(...values.filter((value) => value !== null), 0) * 1.1 || 1;
  const step = CURVE.width / (history.points - 1);
  const left = CURVE.width - (values.length - 1) * step;
  let path = "";
  let pen = "M";
  values.forEach((value, at) => {
    if (value === null) {
      pen = "M";
      return;
    }
    path += `${pen}${(left + at * step).toFixed(1)} ${(CURVE.height - 1 - (value / top) * (CURVE.height - 2)).toFixed(1)}`;
    pen = "L";
  });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", `0 0 ${CURVE.width} ${CURVE.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${what}, the last ${span(values.length * history.every_s)}`);
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

function cell(tag, content, name = "") {
  const element = document.createElement(tag);
  element.append(...[content].flat().filter((part) => part !== null));
  if (name) element.className = name;
  return element;
}

// A row is [key, class, cells]. Only what differs is replaced: the keyboard and a selection stay where they are.
function fill(table, heads, rows, none) {
  if (!table.tHead) {
    const titles = heads.map(([title, name]) => Object.assign(cell("th", title, name), { scope: "col" }));
    table.createTHead().append(cell("tr", titles));
    table.createTBody();
  }
  const body = table.tBodies[0];
  if (!rows.length) rows = [["", "", [Object.assign(cell("td", none, "words soft"), { colSpan: heads.length })]]];
  for (const line of [...body.rows]) {
    if (!rows.some(([key]) => key === line.dataset.key)) line.remove();
  }
  rows.forEach(([key, name, cells], at) => {
    let line = [...body.rows].find((row) => row.dataset.key === key);
    if (!line) {
      line = cell("tr", []);
      line.dataset.key = key;
    }
    line.className = name;
    cells.forEach((fresh, column) => {
      const old = line.cells[column];
      if (!old) line.append(fresh);
      else if (!old.isEqualNode(fresh)) old.replaceWith(fresh);
    });
    if (body.rows[at] !== line) body.insertBefore(line, body.rows[at] ?? null);
  });
}

const CAMERA_HEADS = [
  ["camera"], ["state", "words"], ["frames/s"], ["wanted"], ["latency to hub"], ["data/s"], ["size"],
  ["frames"], ["dropped"], ["lost"], ["reconnects"], ["address"], ["release"],
];

function cameraRow(row) {
  const past = history.cameras[row.name] ?? { fps: [], latency_ms: [], bytes_per_s: [] };
  const silent = row.state === "LIVE" || row.age_s === null ? "" : `, ${span(row.age_s)}`;
  const odd = row.state === "LIVE" && oddity(row) ? `, ${oddity(row)}` : "";
  const state = cell("td", `${SHAPES[row.state]} ${row.state}${silent}${odd}`, "state");
  const link = Object.assign(document.createElement("a"), { href: `/#${encodeURIComponent(row.name)}`, textContent: row.name, title: row.name });
  return [row.name, row.state.toLowerCase(), [
    Object.assign(cell("th", link), { scope: "row" }),
    state,
    cell("td", [row.fps.toFixed(1), curve(past.fps, `frames per second of ${row.name}`)]),
    cell("td", known(row.wanted_fps, (fps) => `${+fps.toFixed(1)}`)),
    cell("td", [latency(row) || "not known", curve(past.latency_ms, `latency of ${row.name}`)]),
    cell("td", [size(row.bytes_per_s), curve(past.bytes_per_s, `data per second of ${row.name}`)]),
    cell("td", row.width ? `${row.width}×${row.height}` : "–"),
    cell("td", count(row.frames)),
    cell("td", count(row.dropped)),
    cell("td", count(row.lost)),
    cell("td", known(row.reconnects)),
    cell("td", known(row.address)),
    Object.assign(cell("td", known(row.release, short)), { title: row.release ?? "" }),
  ]];
}

const VIEWER_HEADS = [
  ["viewer"], ["kind", "words"], ["cameras"], ["for"], ["frames"], ["data"], ["delay"], ["program", "words"],
];

function viewerRow(row) {
  const agent = Object.assign(cell("td", row.agent || "–", "words agent"), { title: row.agent });
  return [`${row.id}`, "", [
    Object.assign(cell("th", known(row.address)), { scope: "row" }),
    cell("td", row.kind, "words"),
    cell("td", row.cameras ? String(row.cameras) : "not looking"),
    cell("td", span(row.since_s)),
    cell("td", count(row.frames)),
    cell("td", size(row.bytes)),
    cell("td", known(row.delay_ms, (delay) => `${delay.toFixed(0)} ms`)),
    agent,
  ]];
}

async function ask(path) {
  // A connection may die without a word: a browser by itself would wait for minutes, with the old numbers on the page.
  const signal = AbortSignal.timeout?.(PATIENCE_MS);
  const answer = await fetch(path, { headers: { Accept: "application/json" }, signal });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      try {
        const [rows, viewers, past] = await Promise.all(["/api/cameras", "/api/viewers", "/api/history"].map(ask));
        // A hub that has another page, since it was upgraded.
        if (page !== null && page !== past.page) location.reload();
        page = past.page;
        history = past;
        fill(document.getElementById("cameras"), CAMERA_HEADS, rows.map(cameraRow), "No camera has come yet.");
        fill(document.getElementById("viewers"), VIEWER_HEADS, viewers.map(viewerRow), "No viewers now.");
        write(document.getElementById("summary"), summary(rows));
        write(notice, "");
        notice.classList.remove("alarm");
      } catch {
        write(notice, "The hub does not answer. These numbers are old. Trying again …");
        notice.classList.add("alarm");
      }
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

watch();
