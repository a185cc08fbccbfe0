"""The only place that touches ZMQ sockets: a class for each end of request/reply and publish/subscribe, and a poller.

Nothing here but `Waker` and `Requester.stop` is thread-safe: a socket belongs to the thread that uses it.
"""

from streamer.transport.poller import Poller, Waker
from streamer.transport.receiving import Received, Replier, Subscriber
from streamer.transport.sending import Publisher, Requester, tell_unreached
from streamer.transport.sockets import check_process, out_of_step, share_interpreter

__all__ = [
    "Poller",
    "Publisher",
    "Received",
    "Replier",
    "Requester",
    "Subscriber",
    "Waker",
    "check_process",
    "out_of_step",
    "share_interpreter",
    "tell_unreached",
]
