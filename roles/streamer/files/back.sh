# Goes back to a release, with the settings that each service last came up with there, and restarts the services.
# Arguments: the release, the units.
release=$1
shift
# Without these notes the next deploy restarts the services, even where it finds the release that it wants.
rm -f ./*.started
from=$(readlink current)
point_current_at "$release"
for unit; do
  for file in $(files_of "$unit"); do
    kept=current/ran/${file##*/}
    [ -e "$kept" ] || continue
    # A password that has worked since stays: the old one may be known to those on whose account it was changed.
    [ "${file##*/}" != wall_password ] || ! cmp -s "$file" "$from/ran/wall_password" || continue
    cp -p "$kept" "$file.new"
    # So does the key of a hub: one with a new SD card has lost the key that this release last knew.
    [ "${file##*/}" != sender.yml ] || [ ! -e "$file" ] || awk -v kept="$kept" '
      FNR == 1 { hubs = keys = 0 }
      /^- tcp:/ { host = $2; sub(/:[0-9]+$/, "", host); hub[++hubs] = host }
      /^- curve-public:/ { host = hub[++keys] }
      /^- curve-public:/ && FILENAME != kept { key[host] = $2 }
      /^- curve-public:/ && FILENAME == kept && host in key { $0 = "- " key[host] }
      FILENAME == kept
    ' "$file" "$kept" >"$file.new"
    mv "$file.new" "$file"
  done
  # A hub that shows windows runs as another user, and its user alone may read its key.
  key=/etc/streamer/${unit#streamer-}.key
  [ ! -e "$key" ] || chown "$(sed -n 's/^User=//p' "/etc/systemd/system/$unit.service")" "$key"
done
# A hub needs the ports open that it has there. None is closed: SSH, and other programs, may have moved since.
rules=/etc/streamer-firewall.nft
case " $* " in *" streamer-hub "*)
  ports=$(sed -nE "/: '?(tcp:\/\/)?(127\.|\[::1\]|localhost:)/d; s/^(bind|plain_bind|http): .*:([0-9]+)'?\$/\2/p" \
    /etc/streamer/hub.yml | sort -n | xargs | sed 's/ /, /g')
  if [ -e $rules ] && [ "$ports" ] && ! grep -qF "th dport { $ports } accept" $rules; then
    sed -E "s/^(\s*)tcp dport .*/&\n\1meta l4proto { 6, 17 } th dport { $ports } accept/" $rules >$rules.new
    mv $rules.new $rules
    systemctl try-reload-or-restart streamer-firewall.service
  fi
esac
sync -f /opt/streamer /etc/streamer
systemctl daemon-reload
# Each is Type=notify: this waits until all work, and fails when one does not.
systemctl restart "$@"
