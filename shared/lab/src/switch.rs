//! The switch without its sockets: which frame leaves by which port, and when.
//!
//! A frame occupies the sender's clock, then the path's own (if it has one), is on its way for the path's
//! delay, and occupies the receiver's clock: what a cable, a store-and-forward switch and another cable do.
//! Two devices on one medium have one clock, and a frame between them occupies it once. All of this is in
//! the frames' own time, from the moment they arrived: a switch that wakes late makes a frame late, but not
//! those after it. What waits for a clock beyond its limit is lost, as in a switch's buffer.
//!
//! Times are nanoseconds of any clock that does not go back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::config::Config;

/// What Ethernet adds to a frame on the wire: preamble, checksum and gap.
const WIRE_OVERHEAD: u64 = 24;

/// Addresses that are remembered: many more than a laboratory has.
const ADDRESSES: usize = 4096;

/// Frames that are held at most, in all; beyond that they are lost. 64 Ki frames are 100 MB.
const FRAMES: usize = 1 << 16;

type Address = [u8; 6];

type Due = BinaryHeap<Reverse<(u64, u64, usize)>>;

/// A frame's bytes.
pub(crate) type Frame = Vec<u8>;

/// What was done with frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) carried: u64,
    pub(crate) bytes: u64,
    /// No room before a clock, or in the switch.
    pub(crate) lost: u64,
}

/// Ports, clocks and what is on its way.
#[derive(Debug)]
pub(crate) struct Switch {
    clocks: Vec<Clock>,
    ports: Vec<Port>,
    /// Delay and clock by `from × ports + to`.
    paths: Vec<Option<Path>>,
    learned: HashMap<Address, usize>,
    held: Vec<Option<Held>>,
    vacant: Vec<usize>,
    /// On their way, and waiting for the receiver's clock: `(due, order of arrival, place in held)`.
    inbound: Due,
    /// Through the receiver's clock when due.
    outbound: Due,
    arrivals: u64,
    /// The shortest delay of any path.
    least_delay_ns: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Clock {
    ns_per_byte: f64,
    /// Longest wait.
    limit_ns: u64,
    free: u64,
}

#[derive(Debug)]
struct Port {
    up: usize,
    down: usize,
}

#[derive(Debug, Clone, Copy)]
struct Path {
    delay_ns: u64,
    clock: Option<usize>,
}

#[derive(Debug)]
struct Held {
    to: usize,
    frame: Frame,
}

impl Clock {
    /// Takes a frame that is there at `at`: when it is through. `None` where too much waits before it.
    fn occupy(&mut self, at: u64, bytes: u64) -> Option<u64> {
        let start = self.free.max(at);
        if start - at > self.limit_ns {
            return None;
        }
        self.free = start + self.takes(bytes);
        Some(self.free)
    }

    fn takes(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.ns_per_byte) as u64
    }
}

impl Switch {
    /// A switch with nothing in it. The configuration was checked.
    pub(crate) fn new(config: &Config) -> Self {
        let clock = |clock: &crate::config::ClockConfig| {
            let ns_per_byte = 1e9 / clock.rate;
            Clock { ns_per_byte, limit_ns: (clock.limit as f64 * ns_per_byte) as u64, free: 0 }
        };
        let n = config.ports.len();
        let mut paths = vec![None; n * n];
        for path in &config.paths {
            paths[path.from * n + path.to] = Some(Path { delay_ns: path.delay_ns, clock: path.clock });
        }
        Self {
            clocks: config.clocks.iter().map(clock).collect(),
            ports: config.ports.iter().map(|port| Port { up: port.up, down: port.down }).collect(),
            paths,
            learned: HashMap::new(),
            held: Vec::new(),
            vacant: Vec::new(),
            inbound: Due::new(),
            outbound: Due::new(),
            arrivals: 0,
            least_delay_ns: config.paths.iter().map(|path| path.delay_ns).min().unwrap_or(0),
            counts: Counts::default(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// For how long a frame that has arrived need not be looked at: no path is shorter.
    pub(crate) fn least_delay_ns(&self) -> u64 {
        self.least_delay_ns
    }

    /// A frame has arrived on `port` at `at`. Frames too short to have addresses are dropped.
    pub(crate) fn arrived(&mut self, at: u64, port: usize, frame: Frame) {
        let (Some(&to), Some(&from)) =
            (frame.first_chunk::<6>(), frame[6.min(frame.len())..].first_chunk::<6>())
        else {
            return;
        };
        if self.learned.len() < ADDRESSES || self.learned.contains_key(&from) {
            self.learned.insert(from, port);
        }
        let bytes = frame.len() as u64 + WIRE_OVERHEAD;
        // A frame to many leaves its sender once.
        let Some(sent) = self.clocks[self.ports[port].up].occupy(at, bytes) else {
            self.counts.lost += 1;
            return;
        };
        // The lowest bit of the first byte marks an address of many.
        match self.learned.get(&to).filter(|_| to[0] & 1 == 0) {
            Some(&known) => self.travel(sent, port, known, bytes, frame),
            None => {
                for other in (0..self.ports.len()).filter(|&other| other != port) {
                    self.travel(sent, port, other, bytes, frame.clone());
                }
            }
        }
    }

    fn travel(&mut self, sent: u64, from: usize, to: usize, bytes: u64, frame: Frame) {
        let Some(path) = self.paths[from * self.ports.len() + to] else { return };
        let through = match path.clock {
            None => Some(sent),
            Some(clock) => self.clocks[clock].occupy(sent, bytes),
        };
        let room = self.held.len() - self.vacant.len() < FRAMES;
        let Some(through) = through.filter(|_| room) else {
            self.counts.lost += 1;
            return;
        };
        let place = self.hold(Held { to, frame });
        let one_medium = self.ports[from].up == self.ports[to].down;
        let due = if one_medium { &mut self.outbound } else { &mut self.inbound };
        due.push(Reverse((through + path.delay_ns, self.arrivals, place)));
    }

    fn hold(&mut self, held: Held) -> usize {
        self.arrivals += 1;
        match self.vacant.pop() {
            Some(place) => {
                self.held[place] = Some(held);
                place
            }
            None => {
                self.held.push(Some(held));
                self.held.len() - 1
            }
        }
    }

    /// When a frame leaves next: no sooner than the next one that comes to its receiver's clock is through it.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let out = self.outbound.peek().map(|Reverse((due, ..))| *due);
        let through = self.inbound.peek().and_then(|Reverse((due, _, place))| {
            let held = self.held[*place].as_ref()?;
            let clock = &self.clocks[self.ports[held.to].down];
            Some(clock.free.max(*due) + clock.takes(held.bytes()))
        });
        out.into_iter().chain(through).min()
    }

    /// The next frame that is to leave by `now`, and its port.
    pub(crate) fn leaving(&mut self, now: u64) -> Option<(usize, Frame)> {
        while let Some(&Reverse((due, arrival, place))) = self.inbound.peek().filter(|of| of.0.0 <= now) {
            self.inbound.pop();
            let Some(held) = &self.held[place] else { continue };
            match self.clocks[self.ports[held.to].down].occupy(due, held.bytes()) {
                Some(through) => self.outbound.push(Reverse((through, arrival, place))),
                None => {
                    self.counts.lost += 1;
                    self.release(place);
                }
            }
        }
        let &Reverse((_, _, place)) = self.outbound.peek().filter(|of| of.0.0 <= now)?;
        self.outbound.pop();
        let held = self.release(place)?;
        self.counts.carried += 1;
        self.counts.bytes += held.frame.len() as u64;
        Some((held.to, held.frame))
    }

    fn release(&mut self, place: usize) -> Option<Held> {
        let held = self.held[place].take();
        self.vacant.push(place);
        held
    }
}

impl Held {
    /// Bytes on the wire.
    fn bytes(&self) -> u64 {
        self.frame.len() as u64 + WIRE_OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{ClockConfig, PathConfig, PortConfig};

    const A: Address = [2, 0, 0, 0, 0, 1];
    const B: Address = [2, 0, 0, 0, 0, 2];
    const ALL: Address = [0xff; 6];

    /// Three ports; the last two share a medium when `air`.
    fn switch(rate: f64, delay_ns: u64, air: bool) -> Switch {
        let clock = ClockConfig { rate, limit: 100_000 };
        let port = |at: usize| {
            let (up, down) = if air && at > 0 { (6, 6) } else { (2 * at, 2 * at + 1) };
            PortConfig { interface: format!("p{at}"), up, down }
        };
        let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).filter(|(a, b)| a != b);
        let path = |(from, to)| PathConfig { from, to, delay_ns, clock: None };
        let config = Config {
            clocks: vec![clock; 7],
            ports: (0..3).map(port).collect(),
            paths: pairs.map(path).collect(),
        };
        config.check().expect("config");
        Switch::new(&config)
    }

    fn frame(to: Address, from: Address, len: usize) -> Frame {
        let mut frame = [to, from].concat();
        frame.resize(len, 0);
        frame
    }

    /// All frames in the order in which they leave, with when.
    fn drain(switch: &mut Switch) -> Vec<(u64, usize, usize)> {
        let mut out = Vec::new();
        while let Some(due) = switch.next_due() {
            while let Some((port, frame)) = switch.leaving(due) {
                out.push((due, port, frame.len()));
            }
        }
        out
    }

    #[test]
    fn a_frame_takes_both_cables_and_the_delay() {
        // 976 bytes and what Ethernet adds are a microsecond at this rate.
        let mut switch = switch(1e9, 5_000, false);
        switch.arrived(100, 1, frame(A, B, 976));
        // Nobody knows A yet: both others get it.
        assert_eq!(drain(&mut switch), [(7_100, 0, 976), (7_100, 2, 976)]);
        // B was learned, and hears alone.
        switch.arrived(10_000, 0, frame(B, A, 976));
        assert_eq!(drain(&mut switch), [(17_000, 1, 976)]);
    }

    #[test]
    fn frames_follow_each_other_at_the_rate() {
        let mut switch = switch(1e9, 5_000, false);
        switch.arrived(0, 1, frame(ALL, B, 976));
        drain(&mut switch);
        for _ in 0..10 {
            switch.arrived(20_000, 0, frame(B, A, 976));
        }
        let left: Vec<u64> = drain(&mut switch).iter().map(|(due, ..)| *due).collect();
        let expected: Vec<u64> = (0..10).map(|n| 27_000 + n * 1_000).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn one_medium_carries_one_frame_at_a_time_and_once() {
        let mut switch = switch(1e9, 5_000, true);
        switch.arrived(0, 1, frame(ALL, B, 976));
        drain(&mut switch);
        // Both stations send at once: to each other over the air alone, to the wire over both.
        switch.arrived(50_000, 2, frame(B, A, 976));
        switch.arrived(50_000, 1, frame(ALL, B, 976));
        let left = drain(&mut switch);
        assert_eq!(left, [(56_000, 1, 976), (57_000, 2, 976), (58_000, 0, 976)]);
    }

    #[test]
    fn what_waits_too_long_is_lost() {
        // A hundred thousand bytes may wait.
        let mut switch = switch(1e9, 0, false);
        for _ in 0..200 {
            switch.arrived(0, 0, frame(ALL, A, 976));
        }
        // One goes at once, a hundred more are within the limit.
        assert_eq!(switch.counts().lost, 99);
        assert_eq!(drain(&mut switch).len(), 202);
    }

    #[test]
    fn a_late_switch_makes_no_later_frame_late() {
        let mut switch = switch(1e9, 5_000, false);
        switch.arrived(0, 0, frame(ALL, A, 976));
        switch.arrived(0, 1, frame(ALL, B, 976));
        // It wakes at 1 ms only; the next frame is on time.
        while switch.leaving(1_000_000).is_some() {}
        switch.arrived(1_000_000, 0, frame(B, A, 976));
        assert_eq!(drain(&mut switch), [(1_007_000, 1, 976)]);
    }

    proptest! {
        #[test]
        fn every_frame_leaves_or_is_lost_and_none_overtakes_on_its_way(
            frames in prop::collection::vec((0u64..1_000_000, 0usize..3, 0usize..3, 14usize..1514), 1..200),
            air in any::<bool>(),
        ) {
            let mut switch = switch(1e8, 30_000, air);
            let mut frames: Vec<_> = frames.into_iter().filter(|(_, from, to, _)| from != to).collect();
            frames.sort();
            let address = |port: usize| [2, 0, 0, 0, 0, port as u8];
            for port in 0..3 {
                switch.arrived(0, port, frame([1; 6], address(port), 60));
            }
            drain(&mut switch);
            let before = switch.counts();
            let mut left: Vec<Vec<(u64, Frame)>> = vec![Vec::new(); 3];
            for (number, &(at, from, to, len)) in frames.iter().enumerate() {
                let at = 10_000_000 + at;
                while let Some(due) = switch.next_due().filter(|&due| due <= at) {
                    while let Some((port, frame)) = switch.leaving(due) {
                        left[port].push((due, frame));
                    }
                }
                let mut bytes = frame(address(to), address(from), len.max(16));
                bytes[12..16].copy_from_slice(&(number as u32).to_le_bytes());
                switch.arrived(at, from, bytes);
            }
            while let Some(due) = switch.next_due() {
                while let Some((port, frame)) = switch.leaving(due) {
                    left[port].push((due, frame));
                }
            }
            let counts = switch.counts();
            let carried: usize = left.iter().map(Vec::len).sum();
            prop_assert_eq!(carried as u64 + counts.lost - before.lost, frames.len() as u64);
            for port in &left {
                for from in 0..3 {
                    let own: Vec<u32> = port
                        .iter()
                        .filter(|(_, frame)| frame[6..12] == address(from))
                        .map(|(_, frame)| u32::from_le_bytes([frame[12], frame[13], frame[14], frame[15]]))
                        .collect();
                    prop_assert!(own.is_sorted());
                }
            }
        }
    }
}
