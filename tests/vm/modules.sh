#!/bin/sh
# Builds what Debian's kernel lacks and packs what the machine boots with. Runs in the machine's system, over which lies
# a layer that is thrown away; the kernel's packages and a compiler are in /debs, the results go to /out.
set -eu
for deb in /debs/*.deb; do
  dpkg-deb -x "$deb" /
done
kernel=$(cd /usr/lib/modules && echo *)
headers=/usr/lib/modules/$kernel/build
mkdir -p /build /out

cd /build
tar -xJf /usr/src/linux-source-*.tar.xz --wildcards --strip-components=4 '*/drivers/media/test-drivers/vimc'
cd vimc
# libcamera drives the sensor at its full size: 4096 x 2160 is one picture a second here.
sed -i 's/\(VIMC_FRAME_MAX_WIDTH\) 4096/\1 640/; s/\(VIMC_FRAME_MAX_HEIGHT\) 2160/\1 480/' vimc-common.h
# Upstream its debayer makes RGB888 of everything, whatever is asked of it.
sed -i '/^static int vimc_debayer_set_fmt/,/^}/ s/^\tif (VIMC_IS_SRC(fmt->pad))$/\
\tif (VIMC_IS_SRC(fmt->pad) \&\& vimc_debayer_src_code_is_valid(fmt->format.code))\
\t\tv4l2_subdev_state_get_format(sd_state, 1)->code = fmt->format.code;\n&/' vimc-debayer.c
grep -q 'MAX_WIDTH 640' vimc-common.h
grep -q 'src_code_is_valid(fmt->format.code)' vimc-debayer.c
make -C "$headers" M="$PWD" CONFIG_VIDEO_VIMC=m CONFIG_DEBUG_INFO_BTF_MODULES= modules
make -C "$headers" M="$(echo /usr/src/v4l2loopback-*)" modules

install -D --mode=644 --target-directory="/usr/lib/modules/$kernel/extra" vimc.ko /usr/src/v4l2loopback-*/v4l2loopback.ko
depmod "$kernel"
files() {
  for module; do
    modprobe --set-version="$kernel" --show-depends "$module"
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++'
}

# What the machine itself loads, with an index of only these.
tree=/out/modules/usr/lib/modules/$kernel
mkdir -p "$tree"
files vimc vivid v4l2loopback | sed "s|^/lib|/usr/lib|" | while read -r file; do
  install -D --mode=644 "$file" "/out/modules$file"
done
cp "/usr/lib/modules/$kernel"/modules.builtin* "/usr/lib/modules/$kernel/modules.order" "$tree"
depmod --basedir=/out/modules/usr "$kernel"

# What mounts the disk and the checkout before that.
mkdir -p /build/first/bin /build/first/modules
cd /build/first
cp /bin/busybox bin
cp /init.sh init
chmod 755 init
at=100
files virtio_blk crc32c_generic ext4 9pnet_virtio 9p | while read -r file; do
  at=$((at + 1))
  name=$(basename "$file" .xz)
  case $file in
    *.xz) xz --decompress --stdout "$file" >"modules/$at-$name" ;;
    *) cp "$file" "modules/$at-$name" ;;
  esac
done
find . | cpio --quiet --create --format=newc >/out/initrd
cp "/boot/vmlinuz-$kernel" /out/vmlinuz
