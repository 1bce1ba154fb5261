//! What local workers measured of themselves, kept for the next run: they are new each time, the machine is not.
//!
//! Workers on boards keep their own measurements; these here have no folder that outlives them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use shoal_core::profile::{DeviceProfile, NodeInfo};
use shoal_core::{ModelSpec, NodeId};

use super::WorkerView;

/// The kept profile for each of these workers, of which there are as many as when it was measured.
pub(crate) fn load(
    dir: &Path,
    spec: &ModelSpec,
    workers: &BTreeMap<NodeId, WorkerView>,
) -> BTreeMap<NodeId, DeviceProfile> {
    let profile = |worker: &WorkerView| {
        let bytes = fs::read(path(dir, spec, &worker.info, workers.len())).ok()?;
        let profile: DeviceProfile = serde_json::from_slice(&bytes).ok()?;
        profile.check().ok()?;
        Some(profile)
    };
    workers.iter().filter_map(|(node, worker)| Some((*node, profile(worker)?))).collect()
}

/// Keeps what was measured; one profile serves for all, since they share one machine.
pub(crate) fn store(
    dir: &Path,
    spec: &ModelSpec,
    workers: &BTreeMap<NodeId, WorkerView>,
    profiles: &BTreeMap<NodeId, DeviceProfile>,
) {
    let Some((node, profile)) = profiles.first_key_value() else { return };
    let Some(worker) = workers.get(node) else { return };
    let path = path(dir, spec, &worker.info, workers.len());
    let save = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, profile)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok::<_, std::io::Error>(())
    };
    if let Err(error) = save() {
        tracing::debug!("failed to keep a profile: {error}");
    }
}

/// Whatever a profile depends on is in the file's name: processor and build, threads, neighbours, formats and widths.
fn path(dir: &Path, spec: &ModelSpec, info: &NodeInfo, workers: usize) -> PathBuf {
    let mut kinds: Vec<&str> = spec.tensors.iter().map(|tensor| tensor.kind.name()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let NodeInfo { hardware, kernel_set, threads, .. } = info;
    let shape = (spec.d_model, spec.ffn, spec.head_dim, spec.n_kv_heads);
    let key = format!("{hardware}|{kernel_set}|{threads}|{workers}|{kinds:?}|{shape:?}");
    let name = blake3::hash(key.as_bytes()).to_hex();
    dir.join("profiles").join(format!("{}.json", &name[..32]))
}
