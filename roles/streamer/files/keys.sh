# Makes a CURVE key pair where there is none, and prints its public half. The secret stays in its file.
# Arguments: the release's directory, the file without .key, the user who is to read it.
set -eu
make=make
if [ -e "$2.key" ]; then
  chmod 600 "$2.key"
  make=show
fi
"$1/bin/streamer" keys "$make" "$2.key" >"$2.pub"
chmod 644 "$2.pub"
chown "$3" "$2.key"
cat "$2.pub"
