#!/bin/sh
# Save a snapshot of the cluster, verify it, and keep the newest KEEP of them: `backup.sh`
# DIRECTORY is where they are, KVORUM_TARGET the cluster. Any failure ends it with nothing deleted.
set -eu
cd "$DIRECTORY"
name=kvorum-$(date -u +%Y%m%dT%H%M%SZ).snapshot

# Under its name it is whole: what an earlier run has left unfinished goes, and nothing else.
rm -f -- *.unverified
kvorum snapshot save "$name.unverified"
kvorum snapshot verify "$name.unverified"
mv -- "$name.unverified" "$name"

# Names sort by time.
ls -1r | grep -E '^kvorum-[0-9]{8}T[0-9]{6}Z\.snapshot$' | tail -n "+$((KEEP + 1))" |
    while read -r old; do
        rm -- "$old"
        echo "deleted $old"
    done
echo "saved $name"
