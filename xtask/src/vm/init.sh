#!/bin/sh
# First process of the virtual machine of `cargo xtask vm`. Writes PASS and FAIL lines, and END, to the second serial
# port; whatever else is said goes to the first one.

export PATH=/bin:/usr/sbin:/usr/bin:/sbin
mkdir -p /proc /sys /dev /tmp /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
exec 3>/dev/ttyS1

# Debian's busybox has an `ip` and even an `svc` of its own, and prefers them.
svc() { /bin/svc "$@"; }
ip() { /bin/ip "$@"; }
tc() { /bin/tc "$@"; }

# check WHAT COMMAND…: one line, and what the command said if it failed.
check() {
    what=$1
    shift
    if "$@" >/tmp/said 2>&1; then
        echo "PASS $what" >&3
    else
        echo "FAIL $what" >&3
        tail -n 60 /tmp/said | sed 's/^/     /' >&3
        return 1
    fi
}

# must WHAT COMMAND…: the same, and nothing after it makes sense without it.
must() {
    check "$@" || end
}

end() {
    echo "the agent's log:"
    cat /tmp/agent.log
    echo END >&3
    reboot -f
}

seconds() { cut -d. -f1 /proc/uptime; }

# eventually COMMAND…: tried until it succeeds, for two minutes or as long as the agent lives.
eventually() {
    deadline=$(($(seconds) + 120))
    until "$@" >/tmp/attempt 2>&1; do
        if [ "$(seconds)" -ge $deadline ] || ! kill -0 $agent 2>/dev/null; then
            cat /tmp/attempt
            tail -n 30 /tmp/agent.log
            return 1
        fi
        usleep 200000
    done
}

says() {
    text=$1
    shift
    "$@" >/tmp/says 2>&1
    cat /tmp/says
    grep -q -- "$text" /tmp/says
}

says_not() {
    text=$1
    shift
    "$@" >/tmp/says 2>&1 || return
    cat /tmp/says
    ! grep -q -- "$text" /tmp/says
}

metrics() { wget -q -O - http://127.0.0.1:10249/metrics; }
compared() { says '^svc_repair_passes_total [1-9]' metrics; }

filters() { tc filter show dev client ingress; tc filter show dev client egress; }

modules() {
    for module in $(cat /modules/order); do
        insmod "/modules/$module.ko" || return
    done
}

bpffs() { mount -t bpf bpf /sys/fs/bpf; }
cgroup() { mount -t cgroup2 cgroup2 /sys/fs/cgroup; }

# A pod: a namespace behind a routed veth, as Calico's are.
pod() {
    ip netns add "$1" &&
        ip link add "$1" type veth peer name eth0 netns "$1" &&
        ip addr add "10.1.0.1/32" dev "$1" && ip link set "$1" up &&
        ip addr add "fd00:1::1/128" dev "$1" nodad &&
        ip route add "10.1.0.$2" dev "$1" && ip route add "fd00:1::$2" dev "$1" &&
        ip -n "$1" link set lo up && ip -n "$1" link set eth0 up &&
        ip -n "$1" addr add "10.1.0.$2/32" dev eth0 && ip -n "$1" addr add "fd00:1::$2/128" dev eth0 nodad &&
        ip -n "$1" route add 10.1.0.1 dev eth0 && ip -n "$1" route add default via 10.1.0.1 &&
        ip -n "$1" route add fd00:1::1 dev eth0 && ip -n "$1" route add default via fd00:1::1
}

network() {
    ip link set lo up &&
        echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding &&
        pod client 3 && pod backend 2 &&
        # The node's own address and its uplink, with nobody at the other end.
        ip link add uplink type veth peer name nobody && ip link set uplink up && ip link set nobody up &&
        ip addr add 192.0.2.1/24 dev uplink && ip route add default via 192.0.2.2
}

start_agent() {
    /bin/svc agent --node-name vm --manifests /manifests --uplink uplink --repair-interval 1 >>/tmp/agent.log 2>&1 &
    agent=$!
}

synced() { says "^Synced: *yes" svc status && says "^Agent: *healthy" svc status; }
attached() { says "^client .* $1 .*svc_egress,svc_ingress" svc status; }

# TCX came with 6.6.
version=$(uname -r)
rest=${version#*.}
if [ "${version%%.*}" -gt 6 ] || { [ "${version%%.*}" -eq 6 ] && [ "${rest%%.*}" -ge 6 ]; }; then
    how=tcx
else
    how=clsact
fi

must "Linux $version runs, with its modules" modules
must "bpffs and cgroup v2 are mounted" eval 'bpffs && cgroup'
must "a node and two pods are connected" network
check "svc check is content" svc check
if [ $how = clsact ]; then
    check "svc check says that TCX is missing" says 'TCX missing' svc check
fi

ip netns exec backend svc-lab echo --name backend --tcp 8080 --udp 8080 >/tmp/backend.log 2>&1 &
# Says what the verifier says, of which the agent's one line has only the end.
check "this kernel's verifier takes every program" bpftool -d prog loadall /svc.o /sys/fs/bpf/try
rm -rf /sys/fs/bpf/try

start_agent
must "the backend listens" eventually says listening cat /tmp/backend.log
must "the agent loads its programs and programs every Service" eventually synced
check "svc status says $how" eventually attached $how
if [ $how = clsact ]; then
    check "the kernel lists both programs as filters of clsact" eval 'says svc_ingress filters && says svc_egress filters'
fi

from_pod() { says '"server":"backend"' ip netns exec client svc-lab probe "$@" --timeout 10000; }
from_host() { says '"server":"backend"' svc-lab probe "$@" --timeout 10000; }

for protocol in udp tcp; do
    check "pod to ClusterIP, $protocol, IPv4" from_pod $protocol 10.96.0.7:80
    check "pod to ClusterIP, $protocol, IPv6" from_pod $protocol '[fd00:96::7]:80'
    check "pod to node port, $protocol, IPv4" from_pod $protocol 192.0.2.1:30080
    check "process of the host to ClusterIP, $protocol, IPv4" from_host $protocol 10.96.0.7:80
    check "process of the host to ClusterIP, $protocol, IPv6" from_host $protocol '[fd00:96::7]:80'
    check "process of the host to node port of 127.0.0.1, $protocol" from_host $protocol 127.0.0.1:30080
done
check "the agent compares maps and programs" eventually compared
check "and finds nothing to repair" says_not '^svc_repair\(s_total\|_problem\)' metrics
if [ $how = clsact ]; then
    tc qdisc del dev client clsact
    check "filters that were removed are there again" eventually attached $how
    check "and counted" says '^svc_repairs_total{what="clsact"} 2' metrics
fi
check "a Service without endpoints refuses a process of the host" says '"refused"' svc-lab probe tcp 10.96.0.8:80

kill -9 $agent
wait $agent
check "without an agent the pod is still served" from_pod udp 10.96.0.7:80
start_agent
check "the next agent adopts what it finds" eventually says 'adopted_services=[1-9]' cat /tmp/agent.log
check "it is healthy" eventually synced
check "and attached as before" eventually attached $how
check "and serves" from_pod tcp 10.96.0.7:80

kill $agent
wait $agent
check "svc cleanup" svc cleanup
check "nothing of it is left" says_not svc_ filters

if [ -d /examples ]; then
    check "every path of cargo xtask demo" svc-lab demo --svc /bin/svc --examples /examples
fi

end
