"""The sending program of imagezmq's eight-Pi example, without its camera.

python -m tests.interop.send_pictures stock|ours ADDRESS req|pub image|jpg NAME [FRAMES]
"""

import itertools
import sys
import time

if sys.argv[1] == "stock":
    import imagezmq
else:
    import streamer as imagezmq

from tests.interop.pictures import ARRAYS, JPEGS

_, _, address, pattern, kind, rpi_name, *frames = sys.argv

sender = imagezmq.ImageSender(connect_to=address, REQ_REP=pattern == "req")
print("ready", flush=True)
for number in itertools.count() if not frames else range(int(frames[0])):
    if kind == "jpg":
        reply = sender.send_jpg(rpi_name, JPEGS[number % len(JPEGS)])
    else:
        reply = sender.send_image(rpi_name, ARRAYS[number % len(ARRAYS)])
    print(number, reply, flush=True)
    time.sleep(0.01)
