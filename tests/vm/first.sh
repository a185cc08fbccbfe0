#!/bin/busybox sh
# The machine's first program: mounts its disk and the checkout, and hands over to inside/init.sh.
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
  insmod "$module"
done
mkdir /disk
mount -t ext4 /dev/vda /disk
mount -t 9p -o trans=virtio,version=9p2000.L,ro checkout /disk/checkout
exec switch_root /disk /bin/sh /checkout/tests/vm/inside/init.sh "$@"
