// The feed in a worker: sockets and decoding off the page's thread.

import { openFeed } from "./feed.js";

const url = new URL("/ws", location.href);
url.protocol = url.protocol.replace("http", "ws");
const tell = openFeed(url, (message, transfer = []) => postMessage(message, transfer));
onmessage = ({ data }) => tell(data);
