#!/usr/bin/env bash
# `make demo`: etcd, a driftless server and a small typed service on this
# machine; edits keys with etcdctl and shows the service's values change, with
# the bytes that travelled for each edit. Then it stays up for more edits by
# hand. With DEMO_ONCE=1 it ends by itself, non-zero if a change did not arrive.
#
# Everything is on loopback and in one temporary folder, and is gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."

# How long a step may take. An idle machine needs a fraction of a second.
readonly START_LIMIT=30 CHANGE_LIMIT=10
# The server has 10 s to end its streams.
readonly STOP_LIMIT=12

if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' cyan=$'\e[36m' plain=$'\e[0m'
else
    bold='' dim='' green='' cyan='' plain=''
fi

# --- Processes ---------------------------------------------------------------

dir=$(mktemp -d "${TMPDIR:-/tmp}/driftless-demo.XXXXXX")
pids=()
names=()

# If this script is killed, the kernel ends its children.
guard=()
if command -v setpriv >/dev/null; then
    guard=(setpriv --pdeathsig TERM --)
fi

# Each child leads its own process group. So Ctrl-C reaches only this script,
# which stops the children in order.
start() {
    names+=("$1")
    shift
    set -m
    "${guard[@]}" "$@" </dev/null &
    pids+=($!)
    set +m
}

stop_all() {
    local status=$? i pid deadline
    trap '' INT TERM HUP
    # The latest first: the service, the server, etcd.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        deadline=$((SECONDS + STOP_LIMIT))
        kill -TERM -- "-$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do
            sleep 0.05
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$dir"
    exit "$status"
}
trap stop_all EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    local log
    echo "demo: $*" >&2
    for log in "$dir"/*.log; do
        [[ -s $log ]] || continue
        echo "--- the end of ${log##*/}:" >&2
        tail -n 15 "$log" >&2
    done
    exit 1
}

check_alive() {
    local i
    for i in "${!pids[@]}"; do
        kill -0 "${pids[i]}" 2>/dev/null || fail "${names[i]} ended by itself"
    done
}

# await WHAT SECONDS COMMAND…: until the command succeeds.
await() {
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@"; do
        check_alive
        ((SECONDS < deadline)) || fail "$what: not within the time allowed"
        sleep 0.05
    done
}

# --- Ports -------------------------------------------------------------------

given=" "

is_free() {
    [[ $given != *" $1 "* ]] && ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Sets `port` to the usual one, or where that is in use to one that is not.
pick_port() {
    port=$1
    until is_free "$port"; do
        # Below the range from which the kernel takes ports for connections.
        port=$((20000 + RANDOM % 10000))
    done
    given+="$port "
}

# --- What is asked of the processes ------------------------------------------

# Settings in the user's environment are for another etcd.
clean_etcdctl() {
    env -i PATH="$PATH" ETCDCTL_API=3 etcdctl --endpoints "$etcd_url" "$@"
}

etcd_answers() {
    clean_etcdctl endpoint health >/dev/null 2>&1
}

# Not with curl, which a fresh machine does not have.
http_get() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || exit 1
        printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
        timeout 5 cat <&3
    ) 2>/dev/null
}

server_is_ready() {
    [[ $(http_get /readyz | head -n 1) == *" 200 "* ]]
}

# Sets `sent` to the bytes of all response bodies that the server has sent.
read_sent() {
    sent=$(http_get /metrics |
        awk '/^driftless_sent_bytes_total/ { n += $NF; found = 1 } END { if (found) printf "%d", n }') || true
    [[ -n $sent ]] || fail "the server's metrics have no driftless_sent_bytes_total"
}

# Sets `line` to the next state that the service printed, if there is one.
partial=''
read_state() {
    local piece
    if IFS= read -r piece <&4; then
        line=$partial$piece
        partial=''
        return 0
    fi
    partial+=$piece
    return 1
}

# --- What is shown -----------------------------------------------------------

title() {
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
}

show_state() {
    printf '  service  %s%s%s\n' "$green" "$line" "$plain"
    printf '  wire     %s%d bytes%s\n' "$cyan" "$1" "$plain"
}

# expect_state TEXT BYTES_BEFORE: the service's next state holds the text.
expect_state() {
    await "the service did not see the change" "$CHANGE_LIMIT" read_state
    [[ $line == *"$1"* ]] || fail "the service shows \"$line\", not \"$1\""
    read_sent
    show_state "$((sent - $2))"
}

# edit TEXT ARGUMENTS…: runs etcdctl (its input is ours), and waits until the
# service shows the text in the state that follows: not one state later.
edit() {
    local expected=$1 before
    shift
    read_sent
    before=$sent
    clean_etcdctl "$@" >/dev/null || fail "etcdctl failed: $*"
    expect_state "$expected" "$before"
}

# --- The demo ----------------------------------------------------------------

echo "Building the server and the service, which takes some minutes the first time."
start "the build" cargo build --locked -p driftless -p driftless-examples --bins
# Waited for, not in the foreground, so that SIGTERM need not wait for it.
wait "${pids[0]}" || { echo "demo: the build failed" >&2; exit 1; }
pids=() names=()
target=$(cargo metadata --locked --no-deps --format-version 1 |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
driftless=$target/debug/driftless

pick_port 2379 && etcd_port=$port
pick_port 2380 && peer_port=$port
pick_port 7400 && listen_port=$port
pick_port 7401 && admin_port=$port
etcd_url=http://127.0.0.1:$etcd_port
peer_url=http://127.0.0.1:$peer_port
server_url=http://127.0.0.1:$listen_port

title "etcd on $etcd_url, with a shop's configuration in it"
etcd_environment=(PATH="$PATH")
if [[ $(uname -m) == aarch64 ]]; then
    # etcd 3.4 starts there only when told that this is meant.
    etcd_environment+=(ETCD_UNSUPPORTED_ARCH=arm64)
fi
start "etcd" env -i "${etcd_environment[@]}" \
    etcd --name demo --data-dir "$dir/etcd" --log-level error --logger zap \
    --listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
    --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" \
    --initial-cluster "demo=$peer_url" >"$dir/etcd.log" 2>&1
await "etcd did not start" "$START_LIMIT" etcd_answers

clean_etcdctl txn >/dev/null <<'TXN'

put /config/shop/currency EUR
put /config/shop/banner Welcome
put /config/shop/limits/rps 100
put /config/shop/limits/burst 200


TXN
# etcd takes at most 128 operations in one transaction.
for hundred in 1 2; do
    {
        echo
        for item in $(seq -w 0 99); do
            echo "put /config/shop/prices/item-$hundred$item ${hundred}0$item"
        done
        printf '\n\n'
    } | clean_etcdctl txn >/dev/null
done
echo "  $(clean_etcdctl get --prefix /config/ --keys-only --limit 1000 | grep -c .) keys"

title "The server on $server_url and a service that watches /config/shop/"
start "the server" "$driftless" serve --etcd "$etcd_url" --prefix /config/ \
    --listen "127.0.0.1:$listen_port" --admin "127.0.0.1:$admin_port" >"$dir/server.log" 2>&1
await "the server did not get ready" "$START_LIMIT" server_is_ready
read_sent
before=$sent
: >"$dir/service.out"
exec 4<"$dir/service.out"
start "the service" "$target/debug/demo_service" "$server_url" \
    >>"$dir/service.out" 2>"$dir/service.log"
expect_state "rps=100 burst=200 currency=EUR banner=Welcome prices=200" "$before"

title "etcdctl put /config/shop/limits/rps 250"
edit "rps=250 burst=200 currency=EUR banner=Welcome prices=200" \
    put /config/shop/limits/rps 250

title "etcdctl txn: rps 500, burst 1000 and the banner, all or nothing"
edit "rps=500 burst=1000 currency=EUR banner=Sale prices=200" txn <<'TXN'

put /config/shop/limits/rps 500
put /config/shop/limits/burst 1000
put /config/shop/banner Sale


TXN

title "etcdctl del /config/shop/banner"
edit "rps=500 burst=1000 currency=EUR banner=none prices=200" \
    del /config/shop/banner

if [[ ${DEMO_ONCE:-} == 1 ]]; then
    title "Every change arrived."
    exit 0
fi

title "Now you, in another terminal:"
cat <<NEXT
  export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$etcd_url
  etcdctl put /config/shop/limits/rps 1000
  etcdctl put /config/shop/banner 'Free delivery'
  etcdctl del /config/shop/limits/burst
  $driftless watch --prefix /config/shop/ --server $server_url
${dim}What the service makes of it is shown here. Ctrl-C ends everything.$plain
NEXT
# From here on this is how one leaves.
trap 'echo; exit 0' INT
read_sent
while check_alive; do
    if read_state; then
        before=$sent
        read_sent
        echo
        show_state "$((sent - before))"
    else
        sleep 0.1
    fi
done
