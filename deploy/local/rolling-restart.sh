#!/bin/sh
# Restart every node of the local cluster, one after the other, the leader last: `rolling-restart.sh`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster rolling-restart "$@"
