// The connection to the hub, and the decoding of its pictures. Runs in a worker where the browser has module workers,
// else in the page itself.
//
// A binary message is a picture: version (u8), length of the name (u8), when the hub had it (f64, ms since 1970; all
// little-endian), the name, the JPEG. A text message is JSON: `hello` once, then `cameras`, the table, at least once a
// second. The page sends JSON: `{"want": {camera: frames per second}}`, or `{"want": null}` while nobody sees it; and
// `{"shown": [camera, …]}`: of each camera the hub sends the next picture only then.

const VERSION = 1;
const HEAD_BYTES = 10;
const SILENCE_MS = 5000; // the table comes every second
const PATIENCE_MAX_MS = 60000; // but on a slow line it waits behind a picture
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 5000;

const text = new TextDecoder();

export function openFeed(post) {
  const url = new URL("/ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  let socket = null;
  let wanted; // undefined until the page has said it; null while nobody sees the page
  let heard = 0;
  let patienceMs = SILENCE_MS;
  let slowAt = -Infinity; // when something last took long
  let retryMs = RETRY_FIRST_MS;
  let retry = 0;

  function say(message) {
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  function connect() {
    clearTimeout(retry);
    heard = performance.now();
    const opened = new WebSocket(url);
    socket = opened;
    opened.binaryType = "arraybuffer";
    opened.onopen = () => {
      retryMs = RETRY_FIRST_MS;
      if (wanted !== undefined) say({ want: wanted });
    };
    opened.onmessage = ({ data }) => {
      const now = performance.now();
      if (now - heard > SILENCE_MS / 2) slowAt = now;
      heard = now;
      if (typeof data === "string") post(JSON.parse(data));
      else show(data);
    };
    opened.onclose = () => {
      if (socket === opened) lose();
    };
  }

  function lose() {
    socket = null;
    post({ lost: true });
    retry = setTimeout(connect, retryMs * (0.5 + Math.random() / 2));
    retryMs = Math.min(RETRY_MAX_MS, retryMs * 2);
  }

  async function show(data) {
    const head = new DataView(data);
    if (head.getUint8(0) !== VERSION) return;
    const jpegAt = HEAD_BYTES + head.getUint8(1);
    const name = text.decode(new Uint8Array(data, HEAD_BYTES, jpegAt - HEAD_BYTES));
    try {
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, jpegAt)], { type: "image/jpeg" }));
      post({ picture: { name, bitmap } }, [bitmap]);
    } catch {
      say({ shown: [name] });
      post({ damaged: name });
    }
  }

  // A connection may die without a word: then it is the silence that tells. A slow line is silent too while a picture
  // comes: each time that ends a connection, the next has twice as long, until nothing has taken long for a minute.
  setInterval(() => {
    const now = performance.now();
    const open = socket?.readyState === WebSocket.OPEN;
    if (now - slowAt > PATIENCE_MAX_MS) patienceMs = SILENCE_MS;
    if (!socket || now - heard < patienceMs || (wanted === null && open)) return;
    if (open) {
      patienceMs = Math.min(PATIENCE_MAX_MS, patienceMs * 2);
      slowAt = now;
    }
    const dead = socket;
    lose();
    dead.close();
  }, 1000);

  connect();
  return (message) => {
    if (message.want !== undefined) {
      if (wanted === null && message.want !== null) {
        heard = performance.now();
        if (!socket) connect(); // somebody looks again: now, not after the pause
      }
      wanted = message.want;
    }
    say(message);
  };
}
