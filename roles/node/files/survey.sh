# What a host has of what the roles want, as lines of key=value. Reads only.
# One look at the start, instead of a module for each question: a module costs a small computer a quarter of a second.
# Arguments: the wanted name, then the wanted packages.
name=$1
shift

# role node

echo "name=$(cat /proc/sys/kernel/hostname)"
# Comments may stand above it.
echo "static_name=$(grep -Evs '^[[:space:]]*(#|$)' /etc/hostname | head -n 1)"
grep -Eqs "^127\.0\.1\.1[[:space:]]+($name\.[^[:space:]]+[[:space:]]+)?$name\$" /etc/hosts && hosts=right
echo "hosts=${hosts:-wrong}"

echo "time=$(date +%s)"
# What is written under raspi-config's overlay is gone with the next boot.
grep -Eqsw 'overlayroot=tmpfs|boot=overlay' /proc/cmdline && [ "$(stat -fc %T /)" = overlayfs ] && overlay=on
echo "overlay=${overlay:-off}"

# cloud-init renames at every boot what its seed does not leave alone. The seed wins over /etc/cloud/cloud.cfg.d.
if [ -d /etc/cloud/cloud.cfg.d ]; then
  grep -qsx 'preserve_hostname: true' /etc/cloud/cloud.cfg.d/99-streamer.cfg && cloud=kept || cloud=loose
  seeds=$(grep -lisE '^[[:space:]]*(manage_etc_hosts:[[:space:]]*["'\'']?(true|localhost|template)|preserve_hostname:[[:space:]]*["'\'']?false)' \
    /boot/firmware/user-data /boot/user-data /var/lib/cloud/seed/nocloud/user-data /var/lib/cloud/seed/nocloud-net/user-data)
fi
echo "cloud=${cloud:-none}"
echo "seeds=$(echo $seeds)"

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package} , ${Provides} ,\n' | grep '^installed ')
for package in "$@"; do
  case "$installed" in
    *"installed $package ,"*) ;;
    *) missing="$missing $package" ;;
  esac
done
echo "missing=$(echo $missing)"
ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 && lists=some
echo "lists=${lists:-none}"

case "$installed" in
  *"installed systemd-timesyncd ,"*) clock="timesyncd-$(systemctl is-enabled systemd-timesyncd.service 2>/dev/null)" ;;
  *" time-daemon"[\ ,]*) clock=other ;;
esac
echo "clock=${clock:-none}"

# Where packages go, in MB.
echo "packages_free=$(df -m --output=avail /usr /var | tail -n +2 | sort -n | head -n 1 | xargs)"

[ -d /etc/systemd/journald.conf.d ] && journal_dir=there
echo "journal_dir=${journal_dir:-missing}"
echo "journal=$(sha256sum /etc/systemd/journald.conf.d/60-streamer.conf 2>/dev/null | cut -d' ' -f1)"

# Where sshd listens: as it says, and as this connection shows, which may have come through a socket of systemd's.
pid=$$
while [ "${pid:-0}" -gt 1 ] && [ -z "$ssh_ports" ]; do
  ssh_ports=$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^SSH_CONNECTION=.* //p')
  pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
echo "ssh_ports=$(echo $ssh_ports $(/usr/sbin/sshd -T 2>/dev/null | sed -n 's/^listenaddress .*://p'))"

rules=/etc/streamer-firewall.nft unit=/etc/systemd/system/streamer-firewall.service
if [ -e $rules ] || [ -e $unit ]; then
  firewall="$(cat $rules $unit 2>/dev/null | sha256sum | cut -d' ' -f1)"
  firewall="$firewall $(systemctl is-enabled streamer-firewall.service) $(systemctl is-active streamer-firewall.service)"
  nft list tables 2>/dev/null | grep -qx 'table inet streamer' || firewall="$firewall, flushed"
fi
echo "firewall=$firewall"

# role streamer

echo "groups=$(id -nG streamer 2>/dev/null)"
# The groups that own camera devices. Not every image has both.
echo "device_groups=$(getent group video render | cut -d: -f1 | xargs)"
# Where releases go, in MB.
[ -d /opt/streamer ] && opt=/opt/streamer
echo "release_free=$(df -m --output=avail "${opt:-/opt}" | tail -n 1 | xargs)"
[ -d /etc/streamer ] && etc=there
echo "etc=${etc:-missing}"

# roles sender and hub

echo "systemd=$(systemctl --version | awk 'NR == 1 { print $2 }')"
for part in hub sender; do
  # The public half of its key; of the secret one only whether it is private.
  [ -e "/etc/streamer/$part.key" ] &&
    echo "$part.key=$(cat "/etc/streamer/$part.pub" 2>/dev/null) $(stat -c '%a %U' "/etc/streamer/$part.key")"
  [ -e "/etc/systemd/system/streamer-$part.service" ] || continue
  units="$units streamer-$part"
  for file in "/etc/streamer/$part.yml" "/etc/systemd/system/streamer-$part.service"; do
    echo "$(basename "$file")=$(sha256sum 2>/dev/null <"$file" | cut -d' ' -f1) $(stat -c '%a %U %G' "$file" 2>/dev/null)"
  done
  # What it was last started with, as its role wrote it down, and how it is.
  echo "streamer-$part=$(cat "/opt/streamer/streamer-$part.started" 2>/dev/null)" \
    "$(systemctl is-enabled "streamer-$part.service")" "$(systemctl is-active "streamer-$part.service")"
done
echo "units=$(echo $units)"
echo "hub_port=$(sed -nE "s/^bind: .*:([0-9]+)'?\$/\1/p" /etc/streamer/hub.yml 2>/dev/null)"
# The hubs that the sender was told, then the key of each.
echo "hub_keys=$(sed -nE 's/^- (tcp:|curve-public:)/\1/p' /etc/streamer/sender.yml 2>/dev/null | xargs)"

# Of a secret a digest that is slow to try passwords against, as role hub's filter as_placed makes it.
digest='import hashlib, sys; print(hashlib.scrypt(sys.stdin.buffer.read(), salt=b"streamer", n=16384, r=8, p=1).hex())'
for file in wall_password wall.crt wall.key; do
  [ -e "/etc/streamer/$file" ] || continue
  echo "$file=$(/usr/bin/python3 -c "$digest" <"/etc/streamer/$file") $(stat -c '%a %U %G' "/etc/streamer/$file")"
done
