// Every camera on one page. Pictures are fetched one after the other for each camera: eight endless MJPEG images
// would use up the six connections that a browser opens to one origin.

const TABLE_EVERY_MS = 1000;
const PICTURE_EVERY_MS = 100;
const RETRY_MS = 1000;

const wall = document.getElementById("wall");
const notice = document.getElementById("notice");
const template = document.getElementById("tile");
const tiles = new Map();

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

class Tile {
  constructor(name) {
    this.name = name;
    this.state = "WAITING";
    this.figure = template.content.firstElementChild.cloneNode(true);
    this.image = this.figure.querySelector("img");
    this.image.alt = `picture of ${name}`;
    this.figure.querySelector(".name").textContent = name;
    this.play();
  }

  update(row) {
    this.state = row.state;
    this.figure.className = `tile ${row.state.toLowerCase()}`;
    this.figure.querySelector(".state").textContent = row.state;
    const silent = row.age_s === null ? "never seen" : `no picture for ${Math.round(row.age_s)} s`;
    this.figure.querySelector(".word").textContent = row.state === "LIVE" ? "" : silent;
    this.figure.querySelector(".numbers").textContent =
      row.state === "LIVE" ? `${row.fps.toFixed(1)} fps · ${row.width}×${row.height}` : "";
  }

  async play() {
    while (tiles.get(this.name) === this || !tiles.has(this.name)) {
      const began = performance.now();
      // Of a camera that is stale the last picture is wanted, once.
      const wanted = this.state === "LIVE" || (this.state === "STALE" && !this.image.src);
      if (!wanted || document.hidden || !(await this.load())) {
        await pause(RETRY_MS / 4);
      }
      await pause(Math.max(0, PICTURE_EVERY_MS - (performance.now() - began)));
    }
  }

  async load() {
    try {
      const answer = await fetch(`/snapshot/${this.name}.jpg`);
      if (!answer.ok) return false;
      const url = URL.createObjectURL(await answer.blob());
      const before = this.image.src;
      this.image.src = url;
      await this.image.decode().catch(() => {});
      if (before) URL.revokeObjectURL(before);
      return true;
    } catch {
      return false;
    }
  }
}

async function watch() {
  for (;;) {
    try {
      const answer = await fetch("/api/cameras");
      const rows = await answer.json();
      for (const row of rows) {
        if (!tiles.has(row.name)) {
          tiles.set(row.name, new Tile(row.name));
        }
        tiles.get(row.name).update(row);
      }
      for (const name of tiles.keys()) {
        if (!rows.some((row) => row.name === name)) tiles.delete(name);
      }
      const figures = rows.map((row) => tiles.get(row.name).figure);
      if (figures.length !== wall.children.length || figures.some((figure, at) => wall.children[at] !== figure)) {
        wall.replaceChildren(...figures);
      }
      notice.textContent = rows.length ? "" : "No camera has come yet.";
      const live = rows.filter((row) => row.state === "LIVE").length;
      document.title = `${live} of ${rows.length} cameras live`;
      await pause(TABLE_EVERY_MS);
    } catch {
      notice.textContent = "The hub does not answer. Trying again …";
      for (const tile of tiles.values()) {
        tile.update({ state: "STALE", age_s: null });
        tile.figure.querySelector(".word").textContent = "the hub does not answer";
      }
      await pause(RETRY_MS);
    }
  }
}

watch();
