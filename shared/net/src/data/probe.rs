//! Measuring a link the way an all-reduce uses it.
//!
//! A connection of its own (ALPN `shoal-probe/1`), which any worker of the authority may open: links are measured
//! before there is a plan. On it both ends do what they do on a connection of a plan: the same streams, the same tasks
//! that read and write, an [`Inbox`] of its own, and a plain thread at each end that waits in it as the compute thread
//! would. So a round trip has the same copies, hand-overs and wake-ups as an exchange of two ranks.
//!
//! The side that dialled sends blocks of [`Phase::Probe`], numbered by `step` from 1. The first eight bytes of each say
//! what comes back ([`Wanted`]), as a block of [`Phase::ProbeEcho`] with the same number. An answer begins with the
//! processor time that the answering end has used so far, where that was asked for and is known. The answering end
//! takes at most [`PROBE_BYTES`] in [`PROBE_TIME`] from one connection, answers with at most [`BLOCK_BYTES`] to a block,
//! and serves [`PROBES`] connections at a time, of each node one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use shoal_core::frame::{Class, Header, Phase, WireType};
use shoal_core::limits::FRAME_BYTES;
use shoal_core::profile::{LinkFigures, LinkProfile, Measured, RoundTrip};
use shoal_core::units::{BytesPerSec, Seconds};
use shoal_core::{Epoch, NodeId, StepId, Term};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::inbox::Inbox;
use super::io::Context;
use super::{Block, BlockKey, DataPeer, Wake};
use crate::quic::{self, CloseCode};

/// Bytes that one probe may send; ours sends a fifth of it.
pub(super) const PROBE_BYTES: u64 = 128 << 20;

/// Time that one probe may take.
pub(super) const PROBE_TIME: Duration = Duration::from_secs(20);

/// Largest block of a probe.
const BLOCK_BYTES: usize = 1 << 20;

/// Probes served at a time: more would measure each other.
const PROBES: usize = 2;

/// The epoch of a probe's own inbox; no plan's, and no frame of a plan comes here.
const EPOCH: Epoch = Epoch { term: Term(0), counter: 1 };

/// Payloads whose round trip is measured: a token's bookkeeping, a decode row, a frame.
const ROUND_TRIP_BYTES: [u32; 3] = [64, 4 << 10, 64 << 10];

/// Repetitions whose medians make the spread; round trips in each, but no more than fit into its time.
const BATCHES: usize = 5;
const ROUNDS: usize = 20;
const LEAST_ROUNDS: usize = 3;
const BATCH_TIME: Duration = Duration::from_millis(60);

/// Round trips before the first that counts, in which congestion control and caches warm up.
const WARM_UP: usize = 10;

/// Bulk transfers in each direction, and the time one should take: long beside a round trip.
const BULKS: usize = 3;
const BULK_SECONDS: f64 = 0.06;

/// Bytes of a bulk transfer: more than the windows of a fast link, and no more than a slow one passes in a while.
const LEAST_BULK: usize = 64 << 10;
const MOST_BULK: usize = 4 << 20;

/// Small messages sent at once, as to the other ranks of a group, and how often, for the processor time of one.
const BURST: usize = 4;
const BURSTS: usize = 12;
const CPU_BATCHES: usize = 3;

/// What is taken as the part of a small round trip that each end computes, where the system does not tell: sending
/// and receiving at both ends, without the way between them.
const CPU_PARTS: f64 = 4.0;

/// The start of a block: what is to come back.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// Bytes; none for zero, else at least [`ANSWER_LEAST`].
    bytes: u32,
    /// Whether the answer begins with the answering end's processor time.
    cpu: bool,
}

/// Bytes of the smallest block and the smallest answer.
const ANSWER_LEAST: u32 = 8;

impl Wanted {
    fn write(self, payload: &mut [u8]) {
        let word = u64::from(self.bytes) | u64::from(self.cpu) << 32;
        payload[..8].copy_from_slice(&word.to_le_bytes());
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let word = u64::from_le_bytes(*payload.first_chunk::<8>()?);
        let bytes = word as u32;
        let sound = bytes == 0 || (ANSWER_LEAST..=BLOCK_BYTES as u32).contains(&bytes);
        (sound && word >> 33 == 0).then_some(Self { bytes, cpu: word >> 32 == 1 })
    }
}

/// One end of a probe: an inbox with one peer, for a plain thread.
struct End {
    inbox: Arc<Inbox>,
    peer: NodeId,
    runtime: Handle,
    deadline: Instant,
    payload: Vec<u8>,
}

impl End {
    /// Does with the connection what is done with one of a plan, in an inbox of its own.
    async fn start(context: &Context, connection: Connection, peer: NodeId, dialled: bool) -> Option<Self> {
        let inbox = Arc::new(Inbox::for_probe(context.node()));
        inbox.set_peers(EPOCH, &[DataPeer { node: peer, addresses: Vec::new() }], BLOCK_BYTES as u64).ok()?;
        context.with_inbox(inbox.clone()).start(connection, peer, dialled).await.ok()?;
        let deadline = Instant::now() + PROBE_TIME;
        Some(Self { inbox, peer, runtime: Handle::current(), deadline, payload: vec![0; BLOCK_BYTES] })
    }

    /// Sends the first `bytes` of the payload.
    fn send(&self, phase: Phase, step: u64, bytes: usize) -> Option<()> {
        // Rows of a frame's length at most, as a chunk of a prompt has them.
        let rows = if bytes.is_multiple_of(FRAME_BYTES) { bytes / FRAME_BYTES } else { 1 } as u32;
        let header = Header {
            epoch: EPOCH,
            step: StepId(step),
            stage: 0,
            rank: 0,
            layer: 0,
            phase,
            dtype: WireType::F32,
            first_row: 0,
            rows,
            first_col: 0,
            cols: 0,
            len: 0,
            block_rows: rows,
        };
        self.inbox.send(self.peer, Class::Decode, &header, &self.payload[..bytes]).ok()
    }

    fn wait(&self, phase: Phase, step: u64) -> Option<Block> {
        let key = BlockKey { epoch: EPOCH, step: StepId(step), stage: 0, layer: 0, phase, from: self.peer };
        match self.inbox.wait(&[key], false, Some(self.deadline)) {
            Ok(Wake::Block(_, block)) => Some(block),
            _ => None,
        }
    }

    /// Processor time that this end's two threads have used: the caller's and the runtime's only one.
    fn cpu(&self) -> Option<Duration> {
        let runtime = self.runtime.block_on(self.runtime.spawn(async { thread_cpu() })).ok()??;
        Some(runtime + thread_cpu()?)
    }
}

/// Processor time of the calling thread; `None` where the system does not tell.
fn thread_cpu() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// Measures the link of a connection that was made for this: both directions. `None` when the connection ends or
/// takes too long. Called on a thread that may block and is none of the runtime's.
pub(super) fn measure(
    context: &Context,
    runtime: &Handle,
    connection: &Connection,
    peer: NodeId,
) -> Option<[LinkProfile; 2]> {
    let own = context.node();
    let start = End::start(context, connection.clone(), peer, true);
    let end = runtime.block_on(async { tokio::time::timeout(PROBE_TIME, start).await.ok()? })?;
    let mut prober = Prober { end, step: 0 };
    let mut round_trips = Vec::new();
    for bytes in ROUND_TRIP_BYTES {
        let time = prober.round_trips(bytes)?;
        round_trips.push(RoundTrip { bytes, time });
    }
    let small = round_trips.first()?.time;
    let message_cpu = prober
        .message_cpu()?
        .unwrap_or(Measured { median: Seconds(small.median.0 / CPU_PARTS), spread: small.spread });
    // The last byte's way is half a round trip after it was sent, and so is the order for what comes back.
    let [there, back] = [false, true].map(|back| prober.bandwidth(back, small.median.0 / 2.0));
    let (there, back) = (there?, back?);
    prober.end.inbox.end(EPOCH);
    let profile = |from, to, bandwidth| {
        let round_trips = round_trips.clone();
        LinkProfile { from, to, figures: LinkFigures { round_trips, bandwidth, message_cpu, shared: false } }
    };
    Some([profile(own, peer, there), profile(peer, own, back)])
}

/// The end that measures.
struct Prober {
    end: End,
    step: u64,
}

impl Prober {
    /// Sends `bytes` and says what is to come back.
    fn ask(&mut self, bytes: u32, wanted: Wanted) -> Option<()> {
        self.step += 1;
        wanted.write(&mut self.end.payload);
        self.end.send(Phase::Probe, self.step, bytes as usize)
    }

    fn round_trip(&mut self, bytes: u32) -> Option<f64> {
        let start = Instant::now();
        self.ask(bytes, Wanted { bytes, cpu: false })?;
        self.end.wait(Phase::ProbeEcho, self.step)?;
        Some(start.elapsed().as_secs_f64())
    }

    fn round_trips(&mut self, bytes: u32) -> Option<Measured<Seconds>> {
        for _ in 0..WARM_UP {
            self.round_trip(bytes)?;
        }
        let mut medians = Vec::new();
        for _ in 0..BATCHES {
            let (start, mut times) = (Instant::now(), Vec::new());
            while times.len() < LEAST_ROUNDS || (times.len() < ROUNDS && start.elapsed() < BATCH_TIME) {
                times.push(self.round_trip(bytes)?);
            }
            medians.push(median(&mut times));
        }
        Some(measured(medians, Seconds))
    }

    /// Processor time of a small message on the end that spends more; the inner `None` where that is not known.
    fn message_cpu(&mut self) -> Option<Option<Measured<Seconds>>> {
        let mut figures = Vec::new();
        for _ in 0..CPU_BATCHES {
            let before = (self.end.cpu(), self.their_cpu()?);
            for _ in 0..BURSTS {
                for _ in 0..BURST {
                    self.ask(ROUND_TRIP_BYTES[0], Wanted { bytes: ROUND_TRIP_BYTES[0], cpu: false })?;
                }
                let first = self.step + 1 - BURST as u64;
                for step in first..=self.step {
                    self.end.wait(Phase::ProbeEcho, step)?;
                }
            }
            let after = (self.end.cpu(), self.their_cpu()?);
            let used = |before: Option<Duration>, after: Option<Duration>| after?.checked_sub(before?);
            let (own, theirs) = (used(before.0, after.0), used(before.1, after.1));
            // Each end has sent and received as many; two more messages asked for the time.
            let messages = 2 * (BURST * BURSTS + 1);
            figures.extend(own.max(theirs).map(|time| time.as_secs_f64() / messages as f64));
        }
        figures.retain(|figure| *figure > 0.0);
        Some((!figures.is_empty()).then(|| measured(figures, Seconds)))
    }

    /// Processor time that the other end has used.
    fn their_cpu(&mut self) -> Option<Option<Duration>> {
        self.ask(ROUND_TRIP_BYTES[0], Wanted { bytes: ROUND_TRIP_BYTES[0], cpu: true })?;
        let answer = self.end.wait(Phase::ProbeEcho, self.step)?;
        let nanos = u64::from_le_bytes(*answer.bytes().first_chunk::<8>()?);
        Some((nanos > 0).then(|| Duration::from_nanos(nanos)))
    }

    /// Bytes per second there, or back; the way of the first byte takes `latency` seconds.
    fn bandwidth(&mut self, back: bool, latency: f64) -> Option<Measured<BytesPerSec>> {
        let mut bytes = LEAST_BULK;
        let mut rates = Vec::new();
        while rates.len() < BULKS {
            let whole = self.bulk(bytes, back)?;
            // A round trip that was disturbed may be longer than a transfer: no more than half of it is believed to be
            // the first byte's way, or the rate were absurd.
            let seconds = (whole - latency).max(whole / 2.0).max(1e-9);
            let rate = bytes as f64 / seconds;
            // Transfers that are too short only open the congestion window and say how long one should be.
            if bytes < MOST_BULK && seconds < BULK_SECONDS / 2.0 {
                let fit = (rate * BULK_SECONDS) as usize;
                bytes = fit
                    .clamp((2 * bytes).min(MOST_BULK), MOST_BULK)
                    .next_multiple_of(FRAME_BYTES)
                    .min(MOST_BULK);
            } else {
                rates.push(rate);
            }
        }
        Some(measured(rates, BytesPerSec))
    }

    /// Seconds of a transfer of `bytes`, whole frames.
    fn bulk(&mut self, bytes: usize, back: bool) -> Option<f64> {
        let (start, first) = (Instant::now(), self.step + 1);
        let mut left = bytes;
        while left > 0 {
            let part = left.min(BLOCK_BYTES) as u32;
            left -= part as usize;
            let answer = if left == 0 { ROUND_TRIP_BYTES[0] } else { 0 };
            if back {
                self.ask(ROUND_TRIP_BYTES[0], Wanted { bytes: part, cpu: false })?;
            } else {
                self.ask(part, Wanted { bytes: answer, cpu: false })?;
            }
        }
        let first = if back { first } else { self.step };
        for step in first..=self.step {
            self.end.wait(Phase::ProbeEcho, step)?;
        }
        Some(start.elapsed().as_secs_f64())
    }
}

/// Answers probes.
#[derive(Debug, Clone)]
pub(super) struct Server {
    places: Arc<Semaphore>,
    served: Arc<Mutex<Served>>,
}

/// The one connection of each node that is served or waits for its turn, with its number: so what waits is bounded by
/// the cluster's members, whatever one of them does.
#[derive(Debug, Default)]
struct Served {
    count: u64,
    by_node: BTreeMap<NodeId, (u64, Connection)>,
}

impl Default for Server {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(PROBES)), served: Arc::default() }
    }
}

impl Server {
    /// Serves one connection to its end.
    pub(super) async fn serve(self, context: Context, connection: Connection, peer: NodeId) {
        let work = async {
            // Those that come while others are measured wait within their time.
            let _place = tokio::select! {
                place = self.places.acquire() => place.ok()?,
                _ = connection.closed() => return None,
            };
            let end = End::start(&context, connection.clone(), peer, false).await?;
            let inbox = end.inbox.clone();
            let answering = tokio::task::spawn_blocking(move || answer(end));
            // Whoever hangs up ends the answering as well.
            connection.closed().await;
            inbox.end(EPOCH);
            answering.await.ok()?
        };
        let number = self.enter(peer, &connection);
        // However it ends, the connection is closed, and the prober knows what it got.
        let _ = tokio::time::timeout(PROBE_TIME, work).await;
        quic::close(&connection, CloseCode::Done, "");
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.by_node.get(&peer).is_some_and(|(current, _)| *current == number) {
            served.by_node.remove(&peer);
        }
    }

    /// Takes a node's connection in; its last one is closed, for a node measures one thing at a time.
    fn enter(&self, peer: NodeId, connection: &Connection) -> u64 {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.count += 1;
        let number = served.count;
        if let Some((_, before)) = served.by_node.insert(peer, (number, connection.clone())) {
            quic::close(&before, CloseCode::Replaced, "this node began another probe");
        }
        number
    }
}

/// The answering end's thread: until the connection or its time ends, or too much came.
fn answer(mut end: End) -> Option<()> {
    let (mut taken, mut given) = (0, 0);
    for step in 1.. {
        let block = end.wait(Phase::Probe, step)?;
        let wanted = Wanted::read(block.bytes())?;
        taken += block.bytes().len() as u64;
        given += u64::from(wanted.bytes);
        if taken.max(given) > PROBE_BYTES {
            return None;
        }
        drop(block);
        if wanted.bytes > 0 {
            let cpu = if wanted.cpu { end.cpu() } else { None };
            let nanos = cpu.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(0));
            end.payload[..8].copy_from_slice(&nanos.to_le_bytes());
            end.send(Phase::ProbeEcho, step, wanted.bytes as usize)?;
        }
    }
    None
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measured<T>(mut values: Vec<f64>, unit: impl Fn(f64) -> T) -> Measured<T> {
    let median = median(&mut values);
    let spread = (values[values.len() - 1] - values[0]) / median;
    Measured { median: unit(median), spread: spread as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_relative_to_the_median() {
        let measured = measured(vec![3.0, 1.0, 2.0], Seconds);
        assert_eq!(measured.median, Seconds(2.0));
        assert_eq!(measured.spread, 1.0);
    }

    #[test]
    fn only_sound_wishes_are_read() {
        let read = |word: u64| Wanted::read(&word.to_le_bytes()).map(|wanted| (wanted.bytes, wanted.cpu));
        assert_eq!(read(0), Some((0, false)));
        assert_eq!(read(64 | 1 << 32), Some((64, true)));
        assert_eq!(read(BLOCK_BYTES as u64), Some((BLOCK_BYTES as u32, false)));
        assert_eq!((read(7), read(BLOCK_BYTES as u64 + 1), read(64 | 1 << 33)), (None, None, None));
        assert!(Wanted::read(&[0; 7]).is_none());
        let mut payload = [0; 8];
        Wanted { bytes: 4096, cpu: true }.write(&mut payload);
        assert!(matches!(Wanted::read(&payload), Some(Wanted { bytes: 4096, cpu: true })));
    }

    #[test]
    fn threads_say_their_processor_time() {
        let before = thread_cpu().unwrap();
        let mut sum = 0_u64;
        while thread_cpu().unwrap() == before {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(thread_cpu().unwrap() > before);
    }
}
