# Makes a CURVE key pair where there is none, and prints its public half. The secret stays in its file.
# Arguments: the release's directory, the file without .key, the user who is to read it.
[ -e "$2.key" ] || "$1/bin/streamer" keys make "$2.key" >/dev/null
chmod 600 "$2.key"
"$1/bin/streamer" keys show "$2.key" >"$2.pub"
chmod 644 "$2.pub"
chown "$3" "$2.key"
cat "$2.pub"
