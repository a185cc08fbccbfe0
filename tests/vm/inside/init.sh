#!/bin/sh
# The first process of the machine's system: what a Pi's systemd would have done, then the checks.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
for directory in /dev/shm /run /tmp; do
  mount -t tmpfs tmpfs "$directory"
done
busybox ip link set lo up
# Whatever happens, the machine does not outlive its test.
(sleep 1800; busybox poweroff -f) &

/usr/lib/systemd/systemd-udevd --daemon
modprobe vimc
# Numbers that nobody else takes; each vivid is one video node: 40 gives pictures, 41 only takes them.
modprobe vivid n_devs=2 node_types=0x1,0x100 vid_cap_nr=40,-1 vid_out_nr=-1,41
# By the name of its second one picamera2 takes this for a Pi 5.
modprobe v4l2loopback devices=2 video_nr=50,51 exclusive_caps=1,1 card_label=loopback,pispbe
udevadm trigger
udevadm settle
mkdir -p /dev/dma_heap
ln -sf system /dev/dma_heap/linux,cma # where picamera2 looks

cp -r /checkout/streamer /run/streamer
PYTHONPATH=/run:/checkout python3 -m tests.vm.inside.checks "$@" >/dev/ttyS1
busybox poweroff -f
