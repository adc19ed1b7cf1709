#!/bin/sh
# Cut nodes of the local cluster off from the others (Linux, root): `partition.sh n1|leader ...`
# KVORUM names the command, if it is not on the PATH: KVORUM=.venv/bin/kvorum
set -eu
exec "${KVORUM:-kvorum}" cluster partition "$@"
