"""Rates and delays of a laboratory.

A link of a profile is its round trips and its bandwidth, measured with the real transport: processor time at both ends
is in them. This machine's transport takes some of that time itself. So rates come first, then the bare path is
measured, and the delay is what is missing. Two networks can do it:

  kernel  a bridge; tbf (burst of one frame) in both directions; netem for the delay. Where the kernel has netem, and
          all devices are wired and alike.
  switch  shoal-lab-delay between all interfaces: rates, delays of each pair, and air that several devices share.
"""
import json
import os
import select
import subprocess

import network

# Bytes on the wire for one of payload: of 1518 with preamble and gap, Ethernet, IP, UDP and QUIC with its tag leave 1425.
# So the 117.5 MB/s that are seen of a gigabit are a gigabit.
WIRE_FACTOR = 1518 / 1425
UP_BYTES = 1_500_000  # what a board's own queue holds: 1000 frames
DOWN_BYTES = 1_000_000  # what a switch holds for one port
FRAME_BYTES = 1514
LEAST_DELAY_S = 1e-6
ROUNDS = 3  # of measuring and correcting
GOOD = 0.03  # a miss that is not corrected again
SWITCH_PRIORITY = 10  # of the real-time kind: frames leave on time also where workers keep all cores busy


def round_trip(link, bytes_):
    """Seconds of a round trip of a profile: given, or between its neighbours, or by the bandwidth."""
    trips = link["round_trips"]
    for trip in trips:
        if trip["bytes"] == bytes_:
            return trip["s"]
    below = [trip for trip in trips if trip["bytes"] < bytes_]
    above = [trip for trip in trips if trip["bytes"] > bytes_]
    if below and above:
        low, high = below[-1], above[0]
        part = (bytes_ - low["bytes"]) / (high["bytes"] - low["bytes"])
        return low["s"] + (high["s"] - low["s"]) * part
    if above:
        return above[0]["s"]
    return below[-1]["s"] + 2 * (bytes_ - below[-1]["bytes"]) / link["bandwidth"]


def kind(asked, cluster):
    if asked != "auto":
        return asked
    figures = [{key: value for key, value in link.items() if key not in ("from", "to")} for link in cluster["links"]]
    alike = all(figure == figures[0] for figure in figures)
    shared = any(link["shared"] for link in cluster["links"])
    return "kernel" if alike and not shared and netem() else "switch"


def netem():
    """Whether this kernel delays packets."""
    name = "shoal-netem"
    try:
        network.run("ip", "netns", "add", name)
        tried = subprocess.run(
            ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], capture_output=True
        )
        return tried.returncode == 0
    except (OSError, RuntimeError):
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def delays(state):
    """One-way delays in real seconds by ordered pair of ports; the coordinator's are those of the quickest pair of
    the device it talks to."""
    own = {tuple(map(int, pair.split())): delay for pair, delay in state["delays_s"].items()}
    out = {}
    n = len(state["cluster"]["devices"])
    for a in range(n):
        for b in range(n):
            if a != b:
                out[a + 1, b + 1] = own.get((a, b), 0.0) * state["dilation"]
    for device in range(1, n + 1):
        mine = [delay for (a, b), delay in out.items() if device in (a, b)]
        out[0, device] = out[device, 0] = min(mine, default=0.0)
    return out


def rates(state):
    """Bytes per second on the wire, by port: a device's own attachment is its quickest link."""
    links = state["cluster"]["links"]
    n = len(state["cluster"]["devices"])
    factor = WIRE_FACTOR / state["dilation"]
    own = [max((link["bandwidth"] for link in links if d in (link["from"], link["to"])), default=1e9) for d in range(n)]
    return [rate * factor for rate in [max(own, default=1e9), *own]]


def apply(lab, state):
    if state["network"] == "kernel":
        return apply_kernel(lab, state)
    return apply_switch(lab, state)


# --- the switch of ours ---


def switch_config(state):
    links = state["cluster"]["links"]
    by_port = rates(state)
    factor = WIRE_FACTOR / state["dilation"]
    clocks = []

    def clock(rate, limit):
        clocks.append({"rate": rate, "limit": limit})
        return len(clocks) - 1

    # A device all of whose links are shared is in the air; all such devices are in one room.
    on_air = [
        all(link["shared"] for link in links if at in (link["from"], link["to"])) and bool(links)
        for at in range(len(state["cluster"]["devices"]))
    ]
    # With one device on Wi-Fi all its links are shared, and so is one of each other device: those are not in the air.
    air = None
    ports = []
    for at, rate in enumerate(by_port):
        if at > 0 and on_air[at - 1]:
            if air is None:
                air = clock(rate, UP_BYTES)
            ports.append({"interface": f"d{at}", "up": air, "down": air})
        else:
            ports.append({"interface": f"d{at}", "up": clock(rate, UP_BYTES), "down": clock(rate, DOWN_BYTES)})
    narrow = {}
    for link in links:
        a, b, rate = link["from"] + 1, link["to"] + 1, link["bandwidth"] * factor
        if rate < 0.99 * min(by_port[a], by_port[b]):
            narrow[a, b] = clock(rate, DOWN_BYTES)
    paths = [
        {"from": a, "to": b, "delay_ns": int(delay * 1e9), "clock": narrow.get((a, b))}
        for (a, b), delay in delays(state).items()
    ]
    return {"clocks": clocks, "ports": ports, "paths": paths}


def apply_switch(lab, state):
    config = lab.folder / "switch.json"
    config.write_text(json.dumps(switch_config(state)))
    lab.net.end([lab.net.switch])
    with open(lab.folder / "switch.log", "a") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", lab.net.switch, lab.delay, "run", str(config)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, preexec_fn=prompt,
        )
    ready, _, _ = select.select([process.stdout], [], [], 10)
    if not ready or process.stdout.readline().strip() != b"ready":
        raise RuntimeError(f"the switch does not start\n{lab.logs()}")


def prompt():
    os.setsid()
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(SWITCH_PRIORITY))
    except OSError:
        pass  # where that is not allowed, frames are late under load, and `check` says so


# --- the kernel's own ---


def apply_kernel(lab, state):
    by_port = rates(state)
    one_way = delays(state)
    switch = lab.net.switch
    if subprocess.run(["ip", "-n", switch, "link", "show", "br0"], capture_output=True).returncode != 0:
        network.run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        network.run("ip", "-n", switch, "link", "set", "br0", "up")
        for at in range(len(by_port)):
            network.run("ip", "-n", switch, "link", "set", f"d{at}", "master", "br0")
    for at, rate in enumerate(by_port):
        own = {delay for (a, _), delay in one_way.items() if a == at}
        if len(own) > 1 and max(own) - min(own) > 0.02 * max(own):
            raise RuntimeError("netem has one delay for each device: use --network switch for links that differ")
        delay = max(own, default=0.0)
        for namespace, interface, limit in ((lab.net.namespace(at), "eth0", UP_BYTES), (switch, f"d{at}", DOWN_BYTES)):
            bits = f"{int(rate * 8)}bit"
            shape = ["root", "handle", "1:", "tbf", "rate", bits, "burst", str(FRAME_BYTES + 26), "limit", str(limit)]
            network.run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, *shape)
            if interface == "eth0" and delay >= LEAST_DELAY_S:
                shape = ["parent", "1:1", "handle", "10:", "netem", "delay", f"{delay * 1e6:.1f}us", "limit", "10000"]
                network.run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, *shape)


# --- calibration ---


def calibrate(lab, state):
    """Measures, and adds to delays what is missing."""
    links = state["cluster"]["links"]
    names = [device["name"] for device in state["cluster"]["devices"]]
    if not links:
        return
    for turn in range(ROUNDS):
        measured = lab.measure()
        off = 0.0
        for link in links:
            pair = (names[link["from"]], names[link["to"]])
            back = (pair[1], pair[0])
            if pair not in measured:
                raise RuntimeError(f"no figure of the link from {pair[0]} to {pair[1]}")
            trip = lambda of: next(t["ms"] for t in measured[of]["round_trips"] if t["bytes"] == 64) / 1e3
            # Both directions of a pair are measured by their round trips; their mean is less disturbed.
            got = (trip(pair) + trip(back)) / 2 if back in measured else trip(pair)
            wanted = round_trip(link, 64)
            key = f"{link['from']} {link['to']}"
            state["delays_s"][key] = max(0.0, state["delays_s"].get(key, 0.0) + (wanted - got) / 2)
            off = max(off, abs(got / wanted - 1))
        if turn > 0 and off < GOOD:
            return
        lab.wire(state)
