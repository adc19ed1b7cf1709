# shellcheck shell=sh
# What init.sh, restore.sh, scale-up.sh, scale-down.sh and update.sh share; none of them does more than this:
# kubectl changes pods, `kvorum` in a pod changes members, and what either of them refuses stays refused.
#
# A script that was interrupted can be run again: it goes on where the cluster is.

# How long a node may take to become a voter, which is how long a copy of all data takes.
: "${TIMEOUT_SECONDS:=1800}"

# For kubectl: what a script was given beyond its own arguments.
kubectl_options=

say() {
    echo "${0##*/}: $*" >&2
}

fail() {
    say "$@"
    exit 1
}

k() {
    # shellcheck disable=SC2086 # names of namespaces and contexts have no spaces
    kubectl $kubectl_options "$@"
}

# in_pod POD COMMAND...
in_pod() {
    pod=$1
    shift
    k exec "$pod" --container kvorum -- "$@"
}

# Any pod: a command in it finds the cluster by its Service.
in_cluster() {
    in_pod statefulset/kvorum "$@"
}

replicas() {
    k get statefulset kvorum --output 'jsonpath={.spec.replicas}'
}

address_of() {
    echo "kvorum-$1.kvorum-peers.$namespace.svc:7100"
}

# Read before anything is changed: the namespace, and that there is a StatefulSet at all.
look() {
    namespace=$(k get statefulset kvorum --output 'jsonpath={.metadata.namespace}') ||
        fail "there is no StatefulSet kvorum here"
    current=$(replicas)
}

# ADDRESS KIND NAME ROLE of each member, a line each; who does not answer at this moment has no role. Fails without a leader.
members() {
    listing=$(in_cluster kvorum member list --json) || return 1
    case $listing in
    *'"leader": null'*) return 1 ;;
    esac
    printf '%s\n' "$listing" | awk -F'"' '
        $2 == "name" { name = $4 }
        $2 == "address" { address = $4 }
        $2 == "kind" { kind = $4 }
        $2 == "role" { print address, kind, name, $4 }'
}

# member_at ADDRESS: its name and kind, `n4 learner`; nothing if no member has the address. Fails without a leader.
member_at() {
    found=$(members) || return 1
    printf '%s\n' "$found" | awk -v wanted="$1" '$1 == wanted { print $3, $2 }'
}

# others_answer ADDRESS: of the voters that stay when the one at ADDRESS leaves, a majority answers at this moment. The leader asks
# itself the same, and goes by whom it has heard lately: a node that has just died it still takes for alive.
others_answer() {
    found=$(members) || return 1
    printf '%s\n' "$found" | awk -v leaving="$1" '
        $2 == "voter" && $1 != leaving { voters++; answering += (NF > 3) }
        END { exit !(2 * answering > voters) }'
}

# The addresses of the voters that do not answer at this moment, one a line. Fails without a leader.
silent() {
    found=$(members) || return 1
    printf '%s\n' "$found" | awk '$2 == "voter" && NF == 3 { print $1 }'
}

# wait_for_voter ORDINAL
wait_for_voter() {
    deadline=$(($(date +%s) + TIMEOUT_SECONDS))
    said=
    while :; do
        state=$(member_at "$(address_of "$1")") || state="no leader answers"
        case ${state:=no member yet} in
        *' voter')
            say "kvorum-$1 is ${state% *}, a voter"
            return
            ;;
        "$said") ;;
        *) say "kvorum-$1: $state" ;;
        esac
        said=$state
        [ "$(date +%s)" -lt "$deadline" ] ||
            fail "kvorum-$1 is no voter after $TIMEOUT_SECONDS s ($state): see kubectl logs kvorum-$1"
        sleep 1
    done
}

# look_at_volume ORDINAL: `new`, or `used` by a node, once its pod runs: images are fetched and volumes made at first.
look_at_volume() {
    deadline=$(($(date +%s) + TIMEOUT_SECONDS))
    said=
    # shellcheck disable=SC2016 # expanded in the pod
    until in_pod "kvorum-$1" sh -c 'if [ -e "$KVORUM_DATA_DIR/kvorum.json" ]; then echo used; else echo new; fi' 2>/dev/null; do
        [ "$(date +%s)" -lt "$deadline" ] ||
            fail "kvorum-$1 does not run: all pods have to, so that no cluster is overlooked"
        [ "$said" ] || say "kvorum-$1 does not run yet"
        said=yes
        sleep 1
    done
}

# Nothing begins beside a cluster that exists: all pods run, and none of them, nor a volume without a pod, was ever a node's.
refuse_unless_all_is_new() {
    ordinal=0
    while [ "$ordinal" -lt "$current" ]; do
        found=$(look_at_volume "$ordinal") || exit 1
        [ "$found" = new ] ||
            fail "kvorum-$ordinal is a node of a cluster already: nothing is begun beside it"
        ordinal=$((ordinal + 1))
    done
    claims=$(k get persistentvolumeclaims --output name) || exit 1
    for claim in $claims; do
        ordinal=${claim##*/data-kvorum-}
        case $ordinal in
        *[!0-9]*) ;;
        *) [ "$ordinal" -lt "$current" ] || fail "$claim is of an earlier cluster: delete it if that is meant" ;;
        esac
    done
}

wait_for_all() {
    ordinal=0
    while [ "$ordinal" -lt "$current" ]; do
        wait_for_voter "$ordinal"
        ordinal=$((ordinal + 1))
    done
    in_cluster kvorum member list
}

remind() {
    say "now write replicas: $1 into your overlay: whatever applies it sets that number, and takes voters away if it is smaller"
}

is_number() {
    case $1 in
    '' | *[!0-9]*) return 1 ;;
    esac
}

warn_of_even() {
    [ $(($1 % 2)) -eq 1 ] || say "$1 nodes survive the loss of $((($1 - 1) / 2)), as $(($1 - 1)) do: odd numbers are better"
}
