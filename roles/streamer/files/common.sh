# The beginning of switch.sh, started.sh and back.sh.
set -eu
# Whatever the login's is: the services' user reads what is written here.
umask 022
cd /opt/streamer

point_current_at() {
  # By rename, so that at no moment there is none.
  ln -sfn "releases/$1" current.new
  mv -T current.new current
}

# Keeps a file's copy with the current release, or forgets it with the file.
keep() {
  if [ -e "$1" ]; then
    # With its mode and owner: some are secrets.
    cp -p "$1" current/ran/new
    mv current/ran/new "current/ran/${1##*/}"
  else
    rm -f "current/ran/${1##*/}"
  fi
}

# What a service runs on besides its release and its key.
files_of() {
  echo "/etc/streamer/${1#streamer-}.yml" "/etc/systemd/system/$1.service"
  [ "$1" != streamer-hub ] || echo /etc/streamer/wall_password /etc/streamer/wall.crt /etc/streamer/wall.key
}
