# Makes a release, or fails and leaves it without .complete; then the next run begins anew.
# Arguments: the release's directory, its wheel's name, the user that will run it, the modules it must import.
# The wheel comes by standard input, in base64, which spares the several journeys to the host that `copy` makes.
set -eu
# Whatever the login's is: the user who runs it reads it.
umask 022
release=$1 wheel=$release/$2 user=$3
shift 3
python=$release/bin/python

rm -rf "$release"
mkdir -p "$release"
base64 --decode >"$wheel"

# It sees what apt installed and needs nothing from the internet.
/usr/bin/python3 -m venv --without-pip --system-site-packages "$release"
"$python" -m installer --compile-bytecode=0 "$wheel"

# It has to work for the user who runs it, in the oddest place that a service could start in.
cd /
set -- streamer "$@"
IFS=,
runuser -u "$user" -- "$python" -c "import $*"
# First onto the card: after a power cut, .complete must not stand beside files that are empty.
sync -f "$release"
: >"$release/.complete"
