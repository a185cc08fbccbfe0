# Gives the host its name. Argument: the name.
set -eu
umask 022

# The domain that the old name had there: 127.0.1.1 old.example.org old.
domain=$(awk '
  $1 == "127.0.1.1" { sub(/#.*/, ""); for (i = 2; i <= NF; i++) if (sub(/^[^.]+\./, "", $i)) { print $i; exit } }
' /etc/hosts 2>/dev/null || :)

enter() {
  { grep -vs '^127\.0\.1\.1[[:space:]]' /etc/hosts || :; echo "127.0.1.1 ${domain:+$1.$domain }$*"; } >/etc/hosts.new
  # Onto the card first: after a power cut there must not be an empty one.
  sync /etc/hosts.new
  mv /etc/hosts.new /etc/hosts
}

# sudo looks its host up and stalls on a name that /etc/hosts lacks: hosts first, with both names until it is renamed.
enter "$1" "$(cat /proc/sys/kernel/hostname)"
echo "$1" >/etc/hostname
# Not by systemd-hostnamed, which a busy host may take half a minute to start.
hostname "$1"
enter "$1"
# It announces NAME.local under the name that it found when it started.
systemctl try-restart avahi-daemon.service 2>/dev/null || :
