# Names another firewall of this host that refuses what it does not know; nothing where there is none. Reads only.
nft list ruleset 2>/dev/null | awk '
  $1 == "table" { table = $2 " " $3 }
  table == "inet streamer" { next }
  table == "inet firewalld" || (/hook input/ && /policy drop/) { print "the table " table; exit }'
