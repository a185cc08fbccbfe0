# Goes back to a release, with the settings that each service last came up with there, and restarts the services.
# Arguments: the release, the units.
set -eu
release=$1
shift
cd /opt/streamer
# Without these notes the next deploy restarts the services, even where it finds the release that it wants.
rm -f ./*.started
# By rename, so that at no moment there is none.
ln -sfn "releases/$release" current.new
mv -T current.new current
for unit; do
  for file in "/etc/streamer/${unit#streamer-}.yml" "/etc/systemd/system/$unit.service"; do
    [ -e "current/ran/${file##*/}" ] || continue
    cp -p "current/ran/${file##*/}" "$file.new"
    mv "$file.new" "$file"
  done
done
sync -f /opt/streamer /etc/streamer
systemctl daemon-reload
# Each is Type=notify: this waits until all work, and fails when one does not.
systemctl restart "$@"
