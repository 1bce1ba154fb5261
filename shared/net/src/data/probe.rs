//! Measuring a link with the real transport.
//!
//! A connection of its own (ALPN `shoal-probe/1`), which any worker of the authority may open: links are
//! measured before there is a plan. One bidirectional stream of frames of [`Phase::Probe`]; a frame whose
//! `stage` is 1 is answered by one of [`Phase::ProbeEcho`] with `layer` bytes. The server takes at most
//! [`PROBE_BYTES`] in [`PROBE_TIME`] from one connection, and [`PROBES`] connections at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};
use shoal_core::frame::{HEADER_BYTES, Header, Phase, WireType};
use shoal_core::limits::FRAME_BYTES;
use shoal_core::profile::{LinkFigures, LinkProfile, Measured, RoundTrip};
use shoal_core::units::{BytesPerSec, Seconds};
use shoal_core::{Epoch, NodeId, StepId};
use tokio::sync::Semaphore;

use crate::quic::{self, CloseCode, LinkError};
use crate::tls::ALPN_PROBE;

/// Bytes that one probe may send; ours sends a seventh of it.
pub(super) const PROBE_BYTES: u64 = 128 << 20;

/// Time that one probe may take.
pub(super) const PROBE_TIME: Duration = Duration::from_secs(20);

/// Probes served at a time: more would measure each other.
const PROBES: usize = 2;

/// Payloads whose round trip is measured: a token's bookkeeping, a decode row, a frame.
const ROUND_TRIP_BYTES: [u32; 3] = [64, 4 << 10, 64 << 10];

/// Repetitions whose medians make the spread, and round trips in each.
const BATCHES: usize = 5;
const ROUNDS: usize = 20;

/// Round trips before the first that counts, in which congestion control and caches warm up.
const WARM_UP: usize = 10;

/// Bulk transfers, and bytes of each: a third of a second at 100 Mbit/s.
const BULKS: usize = 4;
const BULK_BYTES: u32 = 4 << 20;

/// Measures the link of a connection that was made for this.
pub(super) async fn measure(
    connection: &Connection,
    from: NodeId,
    to: NodeId,
) -> Result<LinkProfile, LinkError> {
    let address = quic::address_of(connection);
    let work = async {
        let (send, recv) = connection.open_bi().await.ok()?;
        let mut prober = Prober { send, recv, payload: vec![0; FRAME_BYTES], step: 0 };
        let mut round_trips = Vec::new();
        for bytes in ROUND_TRIP_BYTES {
            let mut medians = Vec::new();
            for batch in 0..BATCHES {
                let mut times = Vec::new();
                for _ in 0..ROUNDS + if batch == 0 { WARM_UP } else { 0 } {
                    times.push(prober.round_trip(bytes).await?);
                }
                medians.push(median(&mut times[if batch == 0 { WARM_UP } else { 0 }..]));
            }
            round_trips.push(RoundTrip { bytes, time: measured(medians, Seconds) });
        }
        let back = round_trips.first()?.time.median.0 / 2.0;
        let mut rates = Vec::new();
        for bulk in 0..=BULKS {
            let time = (prober.bulk(BULK_BYTES).await? - back).max(1e-9);
            // The first only opens the congestion window.
            if bulk > 0 {
                rates.push(f64::from(BULK_BYTES) / time);
            }
        }
        // Two messages, each with work at both ends.
        let cpu = round_trips.first()?.time;
        let message_cpu = Measured { median: Seconds(cpu.median.0 / 4.0), spread: cpu.spread };
        let bandwidth = measured(rates, BytesPerSec);
        let figures = LinkFigures { round_trips, bandwidth, message_cpu, shared: false };
        Some(LinkProfile { from, to, figures })
    };
    match tokio::time::timeout(PROBE_TIME, work).await {
        Ok(Some(report)) => Ok(report),
        Ok(None) => Err(quic::ended(address, connection.closed().await, ALPN_PROBE)),
        Err(_) => Err(LinkError::Timeout { address }),
    }
}

/// Answers probes.
#[derive(Debug, Clone)]
pub(super) struct Server {
    places: Arc<Semaphore>,
}

impl Default for Server {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(PROBES)) }
    }
}

impl Server {
    /// Serves one connection to its end.
    pub(super) async fn serve(self, connection: Connection) {
        let work = async {
            // Those that come while others are measured wait within their time.
            let _place = self.places.acquire().await.ok()?;
            let (send, recv) = connection.accept_bi().await.ok()?;
            answer(send, recv).await
        };
        // However it ends, the connection is closed, and the prober knows what it got.
        let _ = tokio::time::timeout(PROBE_TIME, work).await;
        quic::close(&connection, CloseCode::Done, "");
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream) -> Option<()> {
    let mut payload = vec![0; FRAME_BYTES];
    let (mut head, mut taken) = ([0; HEADER_BYTES], 0);
    while taken < PROBE_BYTES {
        recv.read_exact(&mut head).await.ok()?;
        let header = Header::decode(&head).ok().filter(|header| header.phase == Phase::Probe)?;
        recv.read_exact(payload.get_mut(..header.len as usize)?).await.ok()?;
        taken += HEADER_BYTES as u64 + u64::from(header.len);
        if header.stage == 1 {
            let echo = Header { phase: Phase::ProbeEcho, len: header.layer, ..header };
            let mut frame = echo.encode().to_vec();
            frame.extend_from_slice(payload.get(..header.layer as usize)?);
            send.write_all(&frame).await.ok()?;
        }
    }
    None
}

struct Prober {
    send: SendStream,
    recv: RecvStream,
    payload: Vec<u8>,
    step: u64,
}

impl Prober {
    async fn round_trip(&mut self, bytes: u32) -> Option<f64> {
        let start = Instant::now();
        self.put(bytes, Some(bytes)).await?;
        self.take().await?;
        Some(start.elapsed().as_secs_f64())
    }

    async fn bulk(&mut self, bytes: u32) -> Option<f64> {
        let start = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let part = left.min(FRAME_BYTES as u32);
            left -= part;
            self.put(part, (left == 0).then_some(0)).await?;
        }
        self.take().await?;
        Some(start.elapsed().as_secs_f64())
    }

    async fn put(&mut self, bytes: u32, echo: Option<u32>) -> Option<()> {
        self.step += 1;
        let header = Header {
            epoch: Epoch::default(),
            step: StepId(self.step),
            stage: u16::from(echo.is_some()),
            rank: 0,
            layer: echo.unwrap_or(0),
            phase: Phase::Probe,
            dtype: WireType::F32,
            first_row: 0,
            rows: 1,
            first_col: 0,
            cols: 0,
            len: bytes,
            block_rows: 1,
        };
        self.send.write_all(&header.encode()).await.ok()?;
        self.send.write_all(&self.payload[..bytes as usize]).await.ok()
    }

    async fn take(&mut self) -> Option<()> {
        let mut head = [0; HEADER_BYTES];
        self.recv.read_exact(&mut head).await.ok()?;
        let header = Header::decode(&head).ok()?;
        if header.phase != Phase::ProbeEcho || header.step.0 != self.step {
            return None;
        }
        self.recv.read_exact(&mut self.payload[..header.len as usize]).await.ok()
    }
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
}
