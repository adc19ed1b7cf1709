#!/bin/sh
# Remove the nodes of the highest ordinals, one at a time: `scale-down.sh 3 [-n NAMESPACE] [kubectl's other options]`
# First the member, by the cluster's leave, then its pod. Its volume stays; nothing ever reads it again.
set -eu
. "$(dirname "$0")/common.sh"
is_number "${1:-}" || fail "how many nodes? Usage: scale-down.sh 3 [-n NAMESPACE]"
target=$1
shift
kubectl_options=$*
[ "$target" -ge 1 ] || fail "the last node is the cluster: delete the StatefulSet to end it"

look
[ "$target" -le "$current" ] || fail "there are $current nodes: scale-up.sh makes it $target"
warn_of_even "$target"
while [ "$current" -gt "$target" ]; do
    ordinal=$((current - 1))
    found=$(member_at "$(address_of "$ordinal")") ||
        fail "no leader answers: without one, nobody can tell what may be removed"
    name=${found%% *}
    if [ -n "$name" ]; then
        others_answer "$(address_of "$ordinal")" ||
            fail "$name, which is kvorum-$ordinal, is still a member, and its pod stays: without it no majority would answer"
        in_cluster kvorum member remove "$name" ||
            fail "$name, which is kvorum-$ordinal, is still a member, and its pod stays"
    fi
    k scale statefulset kvorum --current-replicas="$current" --replicas="$ordinal"
    k wait --for=delete "pod/kvorum-$ordinal" --timeout=120s
    say "kvorum-$ordinal is gone; its volume is left:" \
        "kubectl delete persistentvolumeclaim data-kvorum-$ordinal"
    current=$ordinal
done
remind "$target"
