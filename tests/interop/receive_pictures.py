"""The receiving program of imagezmq's eight-Pi example; it prints what the example shows in windows.

python -m tests.interop.receive_pictures stock|ours req|pub image|jpg ADDRESS…
"""

import sys

if sys.argv[1] == "stock":
    import imagezmq
else:
    import streamer as imagezmq

from tests.interop.pictures import describe, describe_jpeg

_, _, pattern, kind, *addresses = sys.argv

image_hub = imagezmq.ImageHub(open_port=addresses[0], REQ_REP=pattern == "req")
for address in addresses[1:]:
    image_hub.connect(address)
print("ready", flush=True)
while True:
    if kind == "jpg":
        rpi_name, jpg_buffer = image_hub.recv_jpg()
        print(rpi_name, describe_jpeg(memoryview(jpg_buffer)), flush=True)
    else:
        rpi_name, image = image_hub.recv_image()
        print(rpi_name, describe(image), flush=True)
    if pattern == "req":
        image_hub.send_reply(b"OK")
