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
rules=/etc/streamer-firewall.nft
if [ -e $rules ]; then
  # A hub needs the ports open that it had there. None is closed: SSH, and other programs, may have moved since.
  case " $* " in *" streamer-hub "*)
    if [ -e current/ran/${rules##*/} ]; then
      awk '
        pass == 1 && / th dport / { opened[++ports] = $0 }
        pass == 2 { is[$0] = 1 }
        pass == 3 { print }
        pass == 3 && /^[[:space:]]*tcp dport / { for (i = 1; i <= ports; i++) if (!(opened[i] in is)) print opened[i] }
      ' pass=1 current/ran/${rules##*/} pass=2 $rules pass=3 $rules >$rules.new
      chmod 644 $rules.new
      mv $rules.new $rules
      systemctl try-reload-or-restart streamer-firewall.service
    elif [ "$from" != "releases/$release" ]; then
      echo "the firewall stays as it is, as no rules are kept with release $release: if a port has changed, deploy instead"
    fi
  esac
fi
sync -f /opt/streamer /etc/streamer
systemctl daemon-reload
# Each is Type=notify: this waits until all work, and fails when one does not.
systemctl restart "$@"
