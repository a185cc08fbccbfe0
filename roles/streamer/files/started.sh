# Writes down that a service came up with the release and the settings it now has, and keeps these settings with the release,
# for a host that must go back to it. Arguments: the unit, what the next deploy compares, the releases that worked.
unit=$1 state=$2 history=$3
mkdir -p current/ran
for file in $(files_of "$unit"); do
  keep "$file"
done
# By rename, so that a disk that is full leaves what was there.
echo "$history" >new
mv new history
echo "$state" >new
mv new "$unit.started"
# Onto the card: who deploys and then pulls the plug has what was deployed.
sync -f /opt/streamer /etc/streamer
