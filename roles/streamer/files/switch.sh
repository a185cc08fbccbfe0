# Points current at a release, and removes those that are no longer kept. Arguments: the release, those to remove.
point_current_at "$1"
shift
for release; do
  # Its mark first: half a release must not pass for a whole one when a later deploy wants it again.
  rm -f "releases/$release/.complete"
  rm -rf "releases/$release"
done
