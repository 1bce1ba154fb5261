//! Loading a shard: the data plane's peers, the chunks, then the compute thread's part.

use std::sync::Arc;

use shoal_cluster::worker::Event;
use shoal_core::message::{Failure, ModelRef, Peer};
use shoal_core::model::ModelSpec;
use shoal_core::shard;
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Plan};
use shoal_net::chunks;
use shoal_net::control::Link;
use shoal_net::data::DataPeer;
use tokio::task::JoinHandle;

use super::conn::{Conn, Traffic};
use super::{Driver, own_failure};
use crate::emulate::NoWeights;
use crate::runtime::{Loading, failure};
use crate::store::{Cancel, ChunkFuture, ChunkSource, FetchError, Meter, Needs};

/// A load that is going on or done.
pub(super) struct Load {
    epoch: Epoch,
    pub(super) meter: Arc<Meter>,
    /// The connection's bytes when the load began: the epoch's are those since.
    pub(super) before: Traffic,
    cancel: Cancel,
    task: Option<JoinHandle<()>>,
    told: (Bytes, Bytes, Bytes),
}

impl Load {
    /// Begins; what comes of it is told as [`Event::Loaded`].
    pub(super) fn start(
        driver: &Driver,
        model: ModelRef,
        spec: Arc<ModelSpec>,
        plan: Arc<Plan>,
        peers: &[Peer],
    ) -> Self {
        let (epoch, meter, cancel) = (plan.epoch, Arc::new(Meter::default()), Cancel::default());
        let before = driver.conn.as_ref().map(Conn::traffic).unwrap_or_default();
        let task = match prepare(driver, &spec, &plan, peers) {
            Ok(_) if driver.settings.emulated.as_ref().is_some_and(|device| device.is_dry()) => {
                driver.compute.load(Loading { spec, plan, source: Arc::new(NoWeights) });
                None
            }
            Ok(link) => {
                let needs = needs(model, &plan, &spec, driver.node);
                let (store, events) = (driver.store.clone(), driver.events.clone());
                let (cancel, meter) = (cancel.clone(), Arc::clone(&meter));
                let compute = driver.compute.loader();
                Some(tokio::spawn(async move {
                    match store.prepare(needs, Arc::new(LinkChunks(link)), cancel, meter).await {
                        Ok(source) => compute(Loading { spec, plan, source }),
                        Err(error) => {
                            // Without a driver there is nobody to tell.
                            let _ = events.send(Event::Loaded { epoch, result: Err(own_failure(&error)) });
                        }
                    }
                }))
            }
            Err(failure) => {
                let _ = driver.events.send(Event::Loaded { epoch, result: Err(failure) });
                None
            }
        };
        let told = Default::default();
        Self { epoch, meter, before, cancel, task, told }
    }

    /// What has changed since the last call.
    pub(super) fn progress(&mut self) -> Option<Event> {
        let now = (self.meter.done(), self.meter.total(), self.meter.fetched());
        if now == self.told {
            return None;
        }
        self.told = now;
        let (done, total, fetched) = now;
        Some(Event::Progress { epoch: self.epoch, done, total, fetched })
    }

    /// Stops fetching and reading; nothing is told any more.
    pub(super) fn end(self) {
        self.cancel.cancel();
        if let Some(task) = self.task {
            task.abort();
        }
    }
}

/// Checks the budget and puts the plan's peers in force.
fn prepare(driver: &Driver, spec: &ModelSpec, plan: &Plan, peers: &[Peer]) -> Result<Link, Failure> {
    let Some(conn) = &driver.conn else { return Err(failure("the coordinator is gone".to_owned())) };
    let needed = shard::footprint(plan, spec, driver.node).total();
    if needed > driver.usable {
        return Err(failure(format!(
            "failed to load: the plan takes {needed} of memory here, of {} that may be used",
            driver.usable
        )));
    }
    let wanted = |peer: &&Peer| peer.node != driver.node && plan.nodes().contains(&peer.node);
    let peers: Vec<DataPeer> = peers.iter().filter(wanted).map(DataPeer::from).collect();
    let block_bytes = u64::from(plan.max_rows()) * u64::from(spec.d_model) * 4;
    driver.plane.set_peers(plan.epoch, &peers, block_bytes).map_err(|error| own_failure(&error))?;
    Ok(conn.link.clone())
}

/// The bytes of the file that this node's slices need; the mapped table first, since it should be on disk.
fn needs(model: ModelRef, plan: &Plan, spec: &ModelSpec, node: NodeId) -> Needs {
    let mut slices = shard::slices(plan, spec, node);
    slices.sort_by_key(|slice| slice.cut != shard::Cut::Mapped);
    let mapped = slices.iter().find(|slice| slice.cut == shard::Cut::Mapped).map(shard::Slice::file_range);
    Needs { model, ranges: slices.iter().map(shard::Slice::file_range).collect(), mapped }
}

/// The coordinator's chunks, over its control connection.
struct LinkChunks(Link);

impl ChunkSource for LinkChunks {
    fn list(&self, model: &ModelRef, bytes: u64) -> ChunkFuture<'_> {
        let hash = model.hash;
        Box::pin(async move {
            let hashes = chunks::fetch_hashes(&self.0, hash, (bytes / 32) as u32).await;
            hashes.map(|hashes| hashes.concat()).map_err(|error| FetchError(crate::chain(&error)))
        })
    }

    fn chunk(&self, model: &ModelRef, index: u32, _: u64) -> ChunkFuture<'_> {
        let (hash, chunk_bytes) = (model.hash, model.chunk_bytes);
        Box::pin(async move {
            let mut out = Vec::new();
            let keep = |_, bytes| {
                out = bytes;
                Ok(())
            };
            let fetched = chunks::fetch(&self.0, hash, index..index + 1, chunk_bytes, keep).await;
            fetched.map(|()| out).map_err(|error| FetchError(crate::chain(&error)))
        })
    }
}
