# What a host has of releases, as lines of key=value: the end of survey.sh, or alone for who wants to know no more. Reads only.

# A venv dies with the Python that made it: Bookworm -> Trixie must make a new one.
echo "python=$(/usr/bin/python3 -c 'import sys; print("py%d%d" % sys.version_info[:2])')"
if cd /opt/streamer 2>/dev/null; then
  echo "current=$(basename "$(readlink current)")"
  echo "history=$(cat history 2>/dev/null)"
  echo "releases=$(ls releases 2>/dev/null | xargs)"
  echo "complete=$(ls releases/*/.complete 2>/dev/null | cut -d/ -f2 | xargs)"
  echo "ran=$(ls -d releases/*/ran 2>/dev/null | cut -d/ -f2 | xargs)"
fi
