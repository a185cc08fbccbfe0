# Points current at a release, and removes those that are no longer kept. Arguments: the release, those to remove.
# The firewall is set up once the services run: what it lets in until now is what the release before was reached by.
[ ! -d current/ran ] || keep /etc/streamer-firewall.nft
point_current_at "$1"
shift
for release; do
  # Its mark first: half a release must not pass for a whole one when a later deploy wants it again.
  rm -f "releases/$release/.complete"
  rm -rf "releases/$release"
done
