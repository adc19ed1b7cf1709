#!/bin/sh
# Save a snapshot of the cluster, verify it, and keep the newest KEEP of them: `backup.sh`
# DIRECTORY is where they are, KVORUM_TARGET the cluster. Any failure ends it with nothing deleted.
set -eu
cd "$DIRECTORY"
name=kvorum-$(date -u +%Y%m%dT%H%M%SZ).snapshot

# Under its name it is whole: what an earlier run has left unfinished goes, and nothing else.
rm -f -- *.unverified *.unverified.part
kvorum snapshot save "$name.unverified"
kvorum snapshot verify "$name.unverified"
mv -- "$name.unverified" "$name"

# Their names sort by time.
set -- kvorum-????????T??????Z.snapshot
while [ $# -gt "$KEEP" ]; do
    rm -- "$1"
    echo "deleted $1"
    shift
done
echo "saved $name"
