#!/bin/sh
# End the partition of the local cluster: `heal.sh`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster heal "$@"
