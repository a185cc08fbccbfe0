# Makes a release, or fails and leaves it without .complete; then the next run begins anew.
# Arguments: the release's directory, which has the wheel in it, the user that will run it, the modules it must import.
set -eu
release=$1 user=$2
shift 2
python=$release/bin/python

# It sees what apt installed and needs nothing from the internet.
/usr/bin/python3 -m venv --without-pip --system-site-packages "$release"
"$python" -m installer --compile-bytecode=0 "$release"/streamer-*.whl

# It has to work for the user who runs it, in the oddest place that a service could start in.
cd /
for module in streamer "$@"; do
  runuser -u "$user" -- "$python" -c "import $module"
done
: >"$release/.complete"
