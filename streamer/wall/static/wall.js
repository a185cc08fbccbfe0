// Every camera on one page. The feed decodes, this draws: it says of each camera how many pictures a second it can use,
// and never shows an old picture as if it were live.

import { SHAPES, latency, oddity, span, summary, write } from "./states.js";

const FULL_HZ = 60;
const SMALL_HZ = 15; // shown narrower than SMALL_PX
const TINY_HZ = 8;
const UNSEEN_HZ = 0.5; // scrolled out of sight
const SMALL_PX = 240;
const TINY_PX = 120;
const FIT_MAX = 16; // up to so many cameras fit without scrolling, whatever the screen
const SCROLL_PX = 200; // else no tile is narrower
const SWIPE_PX = 60;
const LOOK_MS = 250;
const AGAIN_MS = 3000;

const wall = document.getElementById("wall");
const notice = document.getElementById("notice");
const since = document.getElementById("since"); // beside the notice, which is read aloud whenever it changes
const counts = document.getElementById("summary");
const one = document.getElementById("one");
const template = document.getElementById("tile");
const filling = matchMedia("(display-mode: fullscreen)");

const tiles = new Map(); // by name, in the hub's order
let staleAfterS = 3;
let page = null; // which one the hub has
let lostAt = null; // since when there is no connection
let everConnected = false;
let endpoint = null; // where senders connect; null if the hub only subscribes
let columns = 1;
let awake = null; // the promise of what keeps the screen on

class Tile {
  constructor(name) {
    this.name = name;
    this.row = null;
    this.rowAt = 0;
    this.shownAt = null; // when its newest picture was drawn
    this.damagedAt = -Infinity;
    this.inSight = true;
    this.pending = null;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.href = `#${encodeURIComponent(name)}`;
    this.canvas = this.element.querySelector("canvas");
    this.context = this.canvas.getContext("bitmaprenderer");
    this.parts = Object.fromEntries(
      ["name", "shape", "label", "rate", "late", "word"].map((part) => [part, this.element.querySelector(`.${part}`)]),
    );
    this.parts.name.textContent = name;
    this.element.dataset.name = name;
  }

  update(row) {
    this.row = row;
    this.rowAt = performance.now();
  }

  draw() {
    const { width, height } = this.pending;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    this.context.transferFromImageBitmap(this.pending);
    this.pending = null;
    this.shownAt = performance.now();
  }

  rate() {
    if (!this.inSight || !this.element.offsetParent) return UNSEEN_HZ;
    const width = this.canvas.clientWidth;
    return width < TINY_PX ? TINY_HZ : width < SMALL_PX ? SMALL_HZ : FULL_HZ;
  }

  // For how long the hub has had no frame; null if it never had one.
  hubAgeS(now) {
    return this.row.age_s === null ? null : this.row.age_s + (now - this.rowAt) / 1000;
  }

  // The state as the hub has it; but a picture that has not moved here is not live here.
  look(now) {
    const row = this.row;
    let { state } = row;
    const hubAgeS = this.hubAgeS(now);
    const pictureAgeS = this.shownAt === null ? null : (now - this.shownAt) / 1000;
    const slowest = Math.min(this.rate(), row.fps || Infinity, row.wanted_fps || Infinity);
    const patienceS = Math.max(staleAfterS, 2 / slowest);
    let word = "";
    if (state === "LIVE") {
      const waitedS = pictureAgeS ?? (now - this.firstAsked) / 1000;
      if (lostAt !== null || waitedS > patienceS) state = "STALE";
      if (now - this.damagedAt < staleAfterS * 1000) word = "damaged picture";
      else if (state === "STALE") word = pictureAgeS === null ? "no picture yet" : `no picture for ${span(pictureAgeS)}`;
      else word = oddity(row);
    } else if (state === "STALE") {
      word = `no picture for ${span(hubAgeS)}`;
    } else if (state === "GONE") {
      word = `gone, last seen ${span(hubAgeS)} ago`;
    } else {
      word = "waiting for its first picture";
    }
    const empty = state === "GONE" || state === "WAITING" || this.shownAt === null;
    const live = state === "LIVE";
    const ageS = state === row.state ? hubAgeS : (pictureAgeS ?? hubAgeS);
    const chosen = this.element.classList.contains("chosen");
    const classes = ["tile", state.toLowerCase(), state === "STALE" && "old", empty && "empty", chosen && "chosen"]
      .filter(Boolean).join(" ");
    if (this.element.className !== classes) this.element.className = classes;
    write(this.parts.word, word);
    write(this.parts.shape, SHAPES[state]);
    write(this.parts.label, state);
    write(this.parts.rate, live ? `${row.fps.toFixed(row.fps < 10 ? 1 : 0)} fps` : "");
    write(this.parts.late, live ? latency(row) : ageS === null ? "" : span(ageS));
    // All of it in one label: read from its parts, a tile would say its name twice.
    const said = `${this.name}, ${state}${word ? `, ${word}` : ""}${chosen ? ": back to all cameras" : ""}`;
    // While it has the keyboard, not for the time alone: a reader of screens would say all of it again each second.
    const before = this.element.getAttribute("aria-label") ?? "";
    const held = this.element === document.activeElement;
    if (held ? gist(before) !== gist(said) : before !== said) this.element.setAttribute("aria-label", said);
  }
}

// A tile's label without the time in it.
function gist(label) {
  return label.replace(/ \d+ (s|min|h|days)\b/, "");
}

// -- the feed

let tell = () => {};
let wantedBefore = "";

function receive(message) {
  if (message.picture) take(message.picture);
  else if (message.cameras) arrange(message.cameras);
  else if (message.hello) greet(message.hello);
  else if (message.damaged) {
    const tile = tiles.get(message.damaged);
    if (tile) tile.damagedAt = performance.now();
  } else if (message.lost) lose();
}

function greet(hello) {
  // A hub that has another page: screens that nobody touches take it by themselves.
  if (page !== null && page !== hello.page) location.reload();
  page = hello.page;
  staleAfterS = hello.stale_after_s;
  endpoint = hello.endpoint;
  lostAt = null;
  everConnected = true;
}

async function lose() {
  lostAt ??= performance.now();
  // Asked for a password now: the reload leads to the page that asks for it.
  const answer = await fetch("/api/cameras", { headers: { Accept: "application/json" } }).catch(() => null);
  if (answer?.status === 401) location.reload();
}

let drawing = false;

function take({ name, bitmap }) {
  const tile = tiles.get(name);
  if (!tile) {
    bitmap.close();
    tell({ shown: [name] });
    return;
  }
  tile.pending?.close();
  tile.pending = bitmap;
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(draw);
  }
}

function draw() {
  drawing = false;
  const drawn = [...tiles.values()].filter((tile) => tile.pending);
  for (const tile of drawn) tile.draw();
  tell({ shown: drawn.map((tile) => tile.name) });
}

// What each tile can use, told to the hub when it has changed. Nothing while nobody sees the page.
function want() {
  const rates = document.hidden ? null : Object.fromEntries([...tiles].map(([name, tile]) => [name, tile.rate()]));
  const wanted = JSON.stringify(rates);
  if (wanted === wantedBefore) return;
  wantedBefore = wanted;
  tell({ want: rates });
}

function start() {
  // A part was not to be had, as when the hub has just gone: once it is there, the page begins anew.
  const again = async () => {
    const answer = await fetch("/static/feed.js").catch(() => null);
    if (answer?.ok) location.reload();
    else setTimeout(again, AGAIN_MS);
  };
  const inPage = async () => {
    try {
      const { openFeed } = await import("./feed.js");
      tell = openFeed(receive);
      wantedBefore = "";
    } catch {
      setTimeout(again, AGAIN_MS);
    }
  };
  try {
    const worker = new Worker("/static/worker.js", { type: "module" });
    worker.onmessage = ({ data }) => receive(data);
    worker.onerror = () => {
      worker.terminate();
      if (everConnected) setTimeout(again, AGAIN_MS);
      else inPage();
    };
    tell = (message) => worker.postMessage(message);
  } catch {
    inPage();
  }
}

// -- the grid

function arrange(rows) {
  const now = performance.now();
  let changed = rows.length !== tiles.size;
  for (const name of [...tiles.keys()]) {
    if (!rows.some((row) => row.name === name)) {
      sight.unobserve(tiles.get(name).element);
      tiles.get(name).pending?.close();
      tiles.delete(name);
      changed = true;
    }
  }
  for (const row of rows) {
    let tile = tiles.get(row.name);
    if (!tile) {
      tile = new Tile(row.name);
      tile.firstAsked = now;
      tiles.set(row.name, tile);
      sight.observe(tile.element);
      changed = true;
    }
    tile.update(row);
  }
  if (changed) {
    const held = document.activeElement;
    const ordered = rows.map((row) => [row.name, tiles.get(row.name)]);
    tiles.clear();
    for (const [name, tile] of ordered) tiles.set(name, tile);
    wall.replaceChildren(...ordered.map(([, tile]) => tile.element));
    if (held?.isConnected) held.focus({ preventScroll: true }); // it may be far from where somebody looks
    choose();
  }
  look();
}

// As many columns as make the pictures largest.
function lay() {
  const count = tiles.size;
  if (!count) return;
  const shapes = [...tiles.values()].map(({ row }) => (row.width ? row.width / row.height : 4 / 3)).sort((a, b) => a - b);
  const shape = shapes[count >> 1];
  const style = getComputedStyle(wall);
  const gap = parseFloat(style.columnGap) || 0;
  const width = wall.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  // As if there were no notice: cameras that changed places whenever the hub is away would have to be looked for.
  const told = notice.offsetHeight + since.offsetHeight;
  const height = wall.clientHeight + told - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  const caption = tiles.values().next().value.element.querySelector(".caption").offsetHeight || 24;
  const pictureWidth = (number) => {
    const lines = Math.ceil(count / number);
    const cellHeight = (height - gap * (lines - 1)) / lines - caption;
    return Math.min((width - gap * (number - 1)) / number, cellHeight * shape);
  };
  columns = 1;
  for (let number = 2; number <= count; number++) {
    if (pictureWidth(number) > pictureWidth(columns)) columns = number;
  }
  let row = "minmax(0, 1fr)";
  if (count > FIT_MAX && pictureWidth(columns) < SCROLL_PX) {
    columns = Math.max(2, Math.floor((width + gap) / (SCROLL_PX + gap)));
    row = `${Math.round((width - gap * (columns - 1)) / columns / shape + caption)}px`;
  }
  wall.style.setProperty("--columns", columns);
  wall.style.setProperty("--row", row);
}

function look() {
  const now = performance.now();
  for (const tile of tiles.values()) tile.look(now);
  const rows = [...tiles.values()].map(({ row }) => row);
  const lostS = lostAt === null ? null : (now - lostAt) / 1000;
  const name = chosenName();
  notice.classList.toggle("alarm", lostS !== null && everConnected);
  if (lostS !== null) {
    write(notice, "The hub does not answer. Trying again …");
  } else if (name && rows.length && !tiles.has(name)) {
    write(notice, `There is no camera ${name}; there are: ${[...tiles.keys()].join(", ")}`);
  } else if (everConnected) {
    const hint = endpoint ? ` On a camera: streamer send --hub ${endpoint.replace("*", "ADDRESS-OF-THE-HUB")}` : "";
    write(notice, rows.length ? "" : `No camera has come yet.${hint}`);
  }
  write(since, lostS !== null && everConnected ? `Last heard from ${span(lostS)} ago.` : "");
  write(counts, lostS === null ? summary(rows) : "");
  const live = rows.filter((row) => row.state === "LIVE").length;
  // To a hidden page the hub sends no table: how many there were says nothing of how many there are.
  const title = document.hidden ? "Cameras" : `${live} of ${rows.length} cameras live`;
  document.title = lostS === null ? title : "Cameras: the hub does not answer";
  lay();
  want();
}

// -- one camera

// The camera that a URL names; what is no encoding is the name of none.
function nameIn(url) {
  const name = new URL(url).hash.slice(1);
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

const chosenName = () => nameIn(location.href);

function choose() {
  const name = chosenName();
  const found = tiles.has(name);
  for (const tile of tiles.values()) tile.element.classList.toggle("chosen", tile.name === name);
  wall.classList.toggle("one", found);
  counts.classList.toggle("one", found);
  one.hidden = !found;
}

function go(name) {
  location.hash = name ? `#${encodeURIComponent(name)}` : "#";
}

function step(by) {
  const names = [...tiles.keys()];
  go(names[(names.indexOf(chosenName()) + by + names.length) % names.length]);
}

function save() {
  const name = chosenName() || document.activeElement?.dataset?.name;
  const tile = tiles.get(name);
  if (!tile || tile.row.age_s === null) return; // it has none
  const ageS = tile.row.state === "LIVE" ? 0 : tile.hubAgeS(performance.now());
  const taken = new Date(Date.now() - 1000 * ageS).toISOString();
  const link = document.createElement("a");
  link.href = `/snapshot/${encodeURIComponent(name)}.jpg`;
  link.download = `${name}-${taken.slice(0, 19).replaceAll(":", "-")}.jpg`;
  link.click();
}

function toggleFull() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.();
}

// A page that fills the screen, by its own button, by F11 or in a kiosk, is a wall: the screen stays on, where the browser
// lets a page ask for that (over https, or on the hub itself). While the page is hidden the browser ends it.
function stayAwake() {
  const wanted = !document.hidden && (document.fullscreenElement || filling.matches);
  if (wanted) {
    awake ??= navigator.wakeLock?.request("screen").catch(() => null);
  } else {
    awake?.then((lock) => lock?.release());
    awake = null;
  }
}

function move(by) {
  const elements = [...wall.children];
  const at = elements.indexOf(document.activeElement);
  elements[at < 0 ? 0 : Math.min(elements.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat && event.key.length === 1) return; // a letter that is held was meant once
  const single = wall.classList.contains("one");
  const actions = {
    ArrowLeft: () => (single ? step(-1) : move(-1)),
    ArrowRight: () => (single ? step(1) : move(1)),
    ArrowUp: () => !single && move(-columns),
    ArrowDown: () => !single && move(columns),
    Escape: () => single && go(""),
    s: save,
    f: toggleFull,
  };
  if (!Object.hasOwn(actions, event.key)) return;
  actions[event.key]();
  event.preventDefault();
});

let touchedAt = null;
wall.addEventListener("touchstart", ({ touches }) => {
  touchedAt = touches.length === 1 ? touches[0].clientX : null;
}, { passive: true });
wall.addEventListener("touchend", ({ changedTouches }) => {
  if (touchedAt === null || !wall.classList.contains("one")) return;
  const moved = changedTouches[0].clientX - touchedAt;
  if (Math.abs(moved) > SWIPE_PX) step(moved < 0 ? 1 : -1);
}, { passive: true });

wall.addEventListener("click", (event) => {
  // In the large picture a click leads back.
  if (wall.classList.contains("one") && event.target.closest(".tile")) {
    event.preventDefault();
    go("");
  }
});
document.getElementById("previous").onclick = () => step(-1);
document.getElementById("next").onclick = () => step(1);
document.getElementById("back").onclick = () => go("");
document.getElementById("save").onclick = save;
document.getElementById("full").onclick = toggleFull;
if (!document.fullscreenEnabled) document.getElementById("full").hidden = true;

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const tile = tiles.get(entry.target.dataset.name);
    if (tile) tile.inSight = entry.isIntersecting;
  }
  want();
}, { root: wall, rootMargin: "100px" });

addEventListener("hashchange", ({ oldURL }) => {
  choose();
  look();
  // Whichever way it went back: the camera that was alone has the keyboard, and is in sight. From one to the next it goes
  // along, for a reader of screens to name it; but a button that led there keeps it.
  const held = document.activeElement;
  if (!chosenName()) tiles.get(nameIn(oldURL))?.element.focus();
  else if (held === document.body || wall.contains(held)) tiles.get(chosenName())?.element.focus();
});
addEventListener("resize", look);
document.addEventListener("visibilitychange", look);
document.addEventListener("visibilitychange", stayAwake);
document.addEventListener("fullscreenchange", stayAwake);
filling.addEventListener("change", stayAwake);
setInterval(look, LOOK_MS);
stayAwake();
start();
