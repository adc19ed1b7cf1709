#!/bin/sh
# Begin a cluster, once: `init.sh [-n NAMESPACE] [kubectl's other options]`
# All pods run and wait. kvorum-0 becomes the first member, and the others join it by themselves.
set -eu
. "$(dirname "$0")/common.sh"
kubectl_options=$*

look
refuse_unless_all_is_new
in_pod kvorum-0 kvorum init
wait_for_all
