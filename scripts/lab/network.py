"""Namespaces, interfaces and quotas of a laboratory: made by name, found by name, removed by name."""
import array
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

NAME_CHARS = 8  # names of interfaces and namespaces are made of it
QUOTA_PERIOD_US = 5000  # short against a layer of a large model, long against a scheduler's tick
END_S = 3  # how long processes may take to end by themselves
LAB = str(Path(__file__).resolve().parent / "lab")


def address(at):
    """Of the coordinator (0) or a device (from 1)."""
    return f"10.77.{at // 250}.{at % 250 + 1}"


class Network:
    """Port 0 is the coordinator's namespace, ports from 1 the devices'; the switch has one of its own."""

    def __init__(self, name):
        self.prefix = f"shoal-{name}-"
        self.switch = self.prefix + "sw"

    def namespace(self, at):
        return f"{self.prefix}{at}"

    def within(self, at):
        return ["ip", "netns", "exec", self.namespace(at)]

    def namespaces(self):
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        return [line.split()[0] for line in listed.splitlines() if line.startswith(self.prefix)]

    def build(self, devices):
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "set", "lo", "up")
        for at in range(devices + 1):
            inner = self.namespace(at)
            run("ip", "netns", "add", inner)
            run("ip", "link", "add", "eth0", "netns", inner, "type", "veth", "peer", "name", f"d{at}", "netns", self.switch)
            # Frames as they are on a cable: no large ones that are cut later, whole checksums.
            run("ip", "netns", "exec", inner, sys.executable, LAB, "_plain", "eth0")
            run("ip", "netns", "exec", self.switch, sys.executable, LAB, "_plain", f"d{at}")
            run("ip", "-n", inner, "address", "add", f"{address(at)}/16", "dev", "eth0")
            run("ip", "netns", "exec", inner, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            run("ip", "-n", inner, "link", "set", "lo", "up")
            run("ip", "-n", inner, "link", "set", "eth0", "up")
            run("ip", "-n", self.switch, "link", "set", f"d{at}", "up")
        run("ip", "netns", "exec", self.switch, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")

    def start(self, at, command, log, quota, env):
        """A process that outlives this one, in a device's namespace, with a quota of processor time if one is given."""
        group = self.group(at, quota) if quota else None

        def enter():
            os.setsid()
            if group:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        with open(log, "w") as out:
            subprocess.Popen(
                self.within(at) + command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=enter, env=env
            )

    def group(self, at, quota):
        """A control group that gets `quota` of one processor's time."""
        v2 = Path("/sys/fs/cgroup/cgroup.controllers")
        base = Path("/sys/fs/cgroup") if v2.exists() else Path("/sys/fs/cgroup/cpu")
        group = base / f"{self.prefix}{at}"
        group.mkdir(exist_ok=True)
        amount = max(1000, int(quota * QUOTA_PERIOD_US))
        if v2.exists():
            (group / "cpu.max").write_text(f"{amount} {QUOTA_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(QUOTA_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(amount))
        return group

    def pids(self, at):
        return self.pids_of(self.namespace(at))

    @staticmethod
    def pids_of(namespace):
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
        return [int(pid) for pid in listed.split()]

    def end(self, namespaces):
        """Ends what runs in these namespaces, which is nobody else's."""
        deadline = time.monotonic() + END_S
        number = signal.SIGTERM
        while True:
            pids = [pid for namespace in namespaces for pid in self.pids_of(namespace) if pid != os.getpid()]
            if not pids:
                return
            if time.monotonic() > deadline:
                number = signal.SIGKILL
            for pid in pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)

    def remove(self):
        namespaces = self.namespaces()
        # Workers first, so that none of them complains about the network.
        self.end([name for name in namespaces if name != self.switch])
        self.end(namespaces)
        for name in namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
            for group in base.glob(self.prefix + "*"):
                try:
                    group.rmdir()
                except OSError:
                    pass


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")


# --- what `ethtool -K` does, where there is no ethtool (linux/ethtool.h) ---

SIOCETHTOOL = 0x8946
SET_OFF = {"tx checksums": 0x17, "scatter-gather": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
GET_STRINGS, GET_SET_INFO, SET_FEATURES, FEATURES = 0x1B, 0x37, 0x3B, 4


def plain_interface(name):
    """Switches off whatever makes of several frames one, or leaves checksums for later."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def call(data):
            buffer = array.array("B", data)
            pointer, _ = buffer.buffer_info()
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP", name.encode(), pointer))
            return buffer.tobytes()

        for what, command in SET_OFF.items():
            try:
                call(struct.pack("II", command, 0))
            except OSError as error:
                print(f"{name}: {what} cannot be switched off: {error}", file=sys.stderr)
        count = struct.unpack("IIQI", call(struct.pack("IIQI", GET_SET_INFO, 0, 1 << FEATURES, 0)))[3]
        strings = call(struct.pack("III", GET_STRINGS, FEATURES, count) + bytes(32 * count))[12:]
        features = [strings[at * 32 : at * 32 + 32].split(b"\0")[0].decode() for at in range(count)]
        blocks = (count + 31) // 32
        valid = [0] * blocks
        for at, feature in enumerate(features):
            if feature in ("tx-udp-segmentation", "tx-gso-list", "rx-gro-list", "rx-udp-gro-forwarding", "tx-gso-partial"):
                valid[at // 32] |= 1 << at % 32
        try:
            call(struct.pack("II", SET_FEATURES, blocks) + b"".join(struct.pack("II", mask, 0) for mask in valid))
        except OSError as error:
            print(f"{name}: segmentation cannot be switched off: {error}", file=sys.stderr)
    return 0
