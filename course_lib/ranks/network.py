"""Networks without a name: several hosts on one machine, with a real link between them, for one process tree.

A host is a network namespace of Linux, with interfaces, addresses and sockets of its own, and a name, which
is its address, so that programs that look up where they are find the way. Two hosts are joined by a pair of
virtual interfaces (veth), more by a bridge in a namespace of its own, and the token bucket of `tc` (tbf) lets
what leaves an interface pass at the rate of the link. Nothing of it has a name in the file system: the
namespaces are held by open descriptors and by the processes within, so that the system takes all of it away
with the last of these, however they end.

Root makes namespaces as they are; others get a user namespace first, in which they may. Only a process with
one thread can do that. Python's standard library is enough here.

Sources: man pages namespaces(7), user_namespaces(7), setns(2), veth(4), tc-tbf(8), tc-netem(8); RFC 5737, for
addresses that belong to nobody.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

__all__ = ["INTERFACE", "NetworkError", "address", "build", "enter", "end_all_within"]

INTERFACE = "eth0"  # of each host; ranks of other hosts are reached through it
MTU = 9000  # bytes of a frame's content: "jumbo frames", as between the hosts of a cluster
BURST_S = 0.004  # how long the link may have been idle and still catch up: a timer may be late by as much
QUEUE_BYTES = 2**26  # what may wait for the link; then packets would be dropped, and sent again
KILLED_END_S = 5.0  # how long killed processes may take to be gone
_NEWNET, _NEWUSER, _NEWUTS = 0x40000000, 0x10000000, 0x04000000  # linux/sched.h; UTS: a host's name
_NET_ADMIN = 12  # linux/capability.h
_PR_CAP_AMBIENT, _RAISE = 47, 2  # linux/prctl.h
_FOLDERS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(RuntimeError):
    """Why there can be no linked hosts here, and what to do, in one sentence."""


def address(host: int) -> str:
    """The address of a host on the link: "192.0.2.1" of host 0."""
    return f"192.0.2.{host + 1}"


def build(hosts: int, mbit: float, delay_ms: float = 0.0) -> tuple[list[list[int]], str]:
    """Make linked hosts; this process is moved out of its network, and must have one thread only.

    Args:
        hosts: how many, 2 at least.
        mbit: what passes out of each host, and into it, in 10^6 bits per second.
        delay_ms: how long each packet is on its way besides.

    Returns:
        For each host its namespaces, as descriptors, that of the network first (one more may follow, to be
        held open as well); and why packets are not delayed although they should be, "" if all is as it was
        asked for.

    Errors: NetworkError.
    """
    if not sys.platform.startswith("linux"):
        raise NetworkError("Linked hosts need network namespaces, which only Linux has.")
    for tool in ("ip", "tc"):
        if not shutil.which(tool, path=_FOLDERS):
            raise NetworkError(
                f"Linked hosts need the commands ip and tc, and there is no {tool} here: install the package"
                " iproute2 (iproute on Fedora)."
            )
    _leave_network()
    places = []
    for host in range(hosts + (hosts > 2)):
        _call("unshare", _NEWNET | _NEWUTS)
        socket.sethostname(address(host))
        places.append([os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts")])
    inside = [network for network, _ in places]
    with contextlib.suppress(OSError):  # no IPv6 here, or it is not ours to decide: it would chat a little
        for namespace in inside:
            _call("setns", namespace, _NEWNET)
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as file:
                file.write("1")
    ends = [(namespace, INTERFACE) for namespace in inside[:hosts]]
    veth = f"mtu {MTU} type veth peer name {INTERFACE} mtu {MTU} netns /proc/self/fd/"
    if hosts == 2:
        _do("ip", {inside[0]: [f"link add {INTERFACE} {veth}{inside[1]}"]}, hold=inside)
    else:
        switch = inside[-1]
        lines = ["link add switch type bridge", "link set switch up"]
        for host, namespace in enumerate(inside[:hosts]):
            ends.append((switch, f"port{host}"))
            lines += [f"link add port{host} {veth}{namespace}", f"link set port{host} master switch up"]
        _do("ip", {switch: lines}, hold=inside)
    _do(
        "ip",
        {
            namespace: [
                "link set lo up",
                f"address add {address(host)}/24 dev {INTERFACE}",
                f"link set {INTERFACE} up",
            ]
            for host, namespace in enumerate(inside[:hosts])
        },
    )
    bits_per_s = int(mbit * 1e6)
    burst_bytes = int(max(2 * MTU, bits_per_s / 8 * BURST_S))
    _do(
        "tc",
        _by_namespace(
            ends,
            "qdisc add dev {} root handle 1:"
            f" tbf rate {bits_per_s}bit burst {burst_bytes} limit {QUEUE_BYTES}",
        ),
    )
    if not delay_ms:
        return places, ""
    netem = f"qdisc add dev {{}} parent 1: handle 2: netem delay {delay_ms * 1000:.0f}us limit 100000"
    told = _try("tc", _by_namespace(ends[:hosts], netem), [])
    return places, f"this system cannot delay packets: {told}, so its kernel lacks sch_netem" if told else ""


def enter(namespaces: list[int], user: int | None = None) -> None:
    """Move this process, which must have one thread, into a host's namespaces (descriptors of them).

    user: descriptor of the user namespace to which the host belongs, for a process that is outside of it.
    """
    if user is not None and os.fstat(user).st_ino != os.stat("/proc/self/ns/user").st_ino:
        _call("setns", user, _NEWUSER)
        _pass_rights_on()
    for namespace in namespaces:
        _call("setns", namespace, 0)


def end_all_within(inodes: set[int]) -> None:
    """Kill every process whose network is one of these (numbers of namespaces), but for this one."""
    end, found = time.monotonic() + KILLED_END_S, True
    while found and time.monotonic() < end:
        found = False
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                handle = os.pidfd_open(int(name))
                try:  # looked at once the handle is there: no stranger is hit that got the same number
                    if os.stat(f"/proc/{name}/ns/net").st_ino in inodes:
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        found = True
                finally:
                    os.close(handle)
        time.sleep(0.01 * found)


def _leave_network() -> None:
    """Go into a network of this process's own, by a user namespace where it needs one."""
    try:
        return _call("unshare", _NEWNET)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise _not_allowed(error) from None
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _NEWUSER | _NEWNET)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        _pass_rights_on()
    except OSError as error:
        raise _not_allowed(error) from None


def _not_allowed(error: OSError) -> NetworkError:
    return NetworkError(
        f"Linked hosts need network namespaces, and this system does not let you make one ({error.strerror}):"
        " in a container, start it with --privileged; on Ubuntu, `sudo sysctl"
        " kernel.apparmor_restrict_unprivileged_userns=0` allows them until the next start; or be root."
    )


def _pass_rights_on() -> None:
    """Let programs that this process starts change its network, whoever its user is in there."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    # effective, permitted, inheritable: of the rights 0 to 31, then 32 to 63
    rights = (ctypes.c_uint32 * 6)()
    _call("capget", header, rights)
    rights[2] |= 1 << _NET_ADMIN
    _call("capset", header, rights)
    _call("prctl", _PR_CAP_AMBIENT, _RAISE, _NET_ADMIN, 0, 0)


def _by_namespace(ends: list[tuple[int, str]], line: str) -> dict[int, list[str]]:
    """namespace -> the line for each of its interfaces."""
    found: dict[int, list[str]] = {}
    for namespace, interface in ends:
        found.setdefault(namespace, []).append(line.format(interface))
    return found


def _do(tool: str, lines: dict[int, list[str]], hold: list[int] | None = None) -> None:
    """`_try`, which must not fail."""
    if told := _try(tool, lines, hold or []):
        raise NetworkError(
            f"Linked hosts cannot be made here: {told}. The kernel needs its modules veth, sch_tbf and bridge"
            " (as root: modprobe veth sch_tbf bridge)."
        )


def _try(tool: str, lines: dict[int, list[str]], hold: list[int]) -> str:
    """Give `tool` its lines in each namespace, in all at once. Returns its first complaint, "" if none.

    hold: descriptors that the lines speak of.
    """
    started = []
    for namespace, batch in lines.items():
        _call("setns", namespace, _NEWNET)
        process = subprocess.Popen(
            [shutil.which(tool, path=_FOLDERS) or tool, "-batch", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=hold,
        )
        started.append((process, "\n".join(batch)))
    told = [(process.communicate(text)[1], process.returncode) for process, text in started]
    for text, code in told:
        if code:
            line = next(iter(text.strip().splitlines()), f"exit code {code}")
            return f"{tool} says {line.rstrip('.')!r}"
    return ""


def _call(function: str, *arguments) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
