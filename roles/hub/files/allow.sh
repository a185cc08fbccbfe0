# Writes who may send to this hub: what the inventory and the cameras say, and of cameras that were not asked what it knew.
# In one step, under a lock, since another run may be bringing other cameras' keys at the same time.
# Arguments: the names of those that may send, as one word; then the name and the key of each camera that was asked.
set -eu
umask 022
names=$1
shift
cd /etc/streamer
exec 9<.
flock 9
{
  echo "# Written by Ansible from the inventory: who may send. Deploy to change it."
  {
    cat allowed_keys 2>/dev/null || :
    printf '%s %s\n' "$@"
  } | awk -v names="$names" '
    BEGIN { split(names, words); for (i in words) may[words[i]] }
    NF == 2 && $1 in may { key[$1] = $2 }
    END { for (name in key) print name, key[name] }' | LC_ALL=C sort
} >allowed_keys.new
# Onto the card first: after a power cut there must not be an empty one.
sync allowed_keys.new
mv allowed_keys.new allowed_keys
