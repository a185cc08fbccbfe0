// The feed in a worker: sockets and decoding off the page's thread.

import { openFeed } from "./feed.js";

const tell = openFeed((message, transfer = []) => postMessage(message, transfer));
onmessage = ({ data }) => tell(data);
