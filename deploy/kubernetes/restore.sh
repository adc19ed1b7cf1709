#!/bin/sh
# Begin a cluster with the content of a snapshot: `restore.sh FILE [-n NAMESPACE] [kubectl's other options]`
# As init.sh, of which it takes the place: all pods are new, and wait. A file that is not whole begins nothing.
set -eu
. "$(dirname "$0")/common.sh"
[ $# -ge 1 ] && [ -f "$1" ] || fail "no such file: ${1:-}. Usage: restore.sh FILE [-n NAMESPACE]"
file=$1
shift
kubectl_options=$*

look
refuse_unless_all_is_new
k exec --stdin kvorum-0 --container kvorum -- kvorum snapshot restore - <"$file"
wait_for_all
