#!/bin/sh
# Makes the virtual environment that `make` runs in: environment.sh PYTHON VENV EXTRAS [DEBIAN-PACKAGE ...]
# As root on Debian or Ubuntu the packages that are missing are installed; otherwise it is said which ones are.
set -eu
python=$1 venv=$2 extras=$3
shift 3

command -v "$python" >/dev/null || { echo "make: $python is not installed; Python 3.11 or later is needed" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "make: $("$python" --version) is too old; Python 3.11 or later is needed" >&2; exit 2; }
"$python" -c 'import ensurepip' 2>/dev/null || set -- python3-venv "$@"

missing=
if command -v dpkg-query >/dev/null; then
  # Also what another package provides, as libglib2.0-0t64 does libglib2.0-0.
  # shellcheck disable=SC2016 # dpkg's variables
  there=$(dpkg-query -W -f '${db:Status-Status}, ${Package}, ${Provides},\n' | sed -n 's/ ([^)]*)//g; /^installed,/p')
  for package; do
    case $there in
      *", $package,"*) ;;
      *) missing="$missing $package" ;;
    esac
  done
fi
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Debian packages:$missing"
    # The lab may be installing its own at this moment; apt gives up where it finds another. Ubuntu has not all of them.
    # shellcheck disable=SC2016,SC2086 # the inner shell's variables; a list of words
    flock /run/lock/streamer-apt sh -c '
      set -e
      apt-get -qq update
      known=
      for package; do
        if apt-get -qq install --simulate "$package" >/dev/null 2>&1; then known="$known $package"
        else echo "Not to be had here, so what needs it is skipped: $package"; fi
      done
      DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $known >/dev/null' sh $missing
    # Of this one the tests need the programs, not the service that comes with them.
    case "$missing " in
      *" prometheus "*) [ ! -d /run/systemd/system ] || systemctl --quiet disable --now prometheus ;;
    esac
  elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "make: Python cannot make virtual environments here; first: sudo apt install$missing" >&2
    exit 2
  else
    echo "Not installed, so what needs them is skipped:$missing"
  fi
fi

echo "Making $venv with the extras $extras (the first time takes a minute)"
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[$extras]"
