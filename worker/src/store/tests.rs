//! The store over a peer that counts, lies and fails.

#![expect(clippy::single_range_in_vec_init, reason = "needs are lists of ranges, here of one")]

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::chunks::tests::model;
use super::*;

const CHUNK: u64 = 64 << 10;

/// A peer with one model.
struct Peer {
    file: Vec<u8>,
    list: Vec<u8>,
    asked: AtomicUsize,
    /// Fails after so many chunks.
    fails_after: usize,
    /// Every n-th chunk comes damaged.
    lies_every: usize,
}

impl Peer {
    fn new(file: &[u8], list: &[u8]) -> Self {
        let (file, list) = (file.to_vec(), list.to_vec());
        Self { file, list, asked: AtomicUsize::new(0), fails_after: usize::MAX, lies_every: usize::MAX }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl ChunkSource for Peer {
    fn list(&self, _: &ModelRef, _: u64) -> ChunkFuture<'_> {
        Box::pin(async { Ok(self.list.clone()) })
    }

    fn chunk(&self, _: &ModelRef, index: u32, bytes: u64) -> ChunkFuture<'_> {
        Box::pin(async move {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            if asked > self.fails_after {
                return Err(FetchError("the peer is gone".to_owned()));
            }
            let start = (u64::from(index) * CHUNK) as usize;
            let mut bytes = self.file[start..start + bytes as usize].to_vec();
            if asked.is_multiple_of(self.lies_every) {
                bytes[0] ^= 1;
            }
            Ok(bytes)
        })
    }
}

struct Setting {
    dir: TempDir,
    file: Vec<u8>,
    model: ModelRef,
    list: Vec<u8>,
}

impl Setting {
    fn new(bytes: usize) -> Self {
        let (file, model, list) = model(bytes, 9);
        Self { dir: tempfile::tempdir().expect("folder"), file, model, list }
    }

    fn peer(&self) -> Peer {
        Peer::new(&self.file, &self.list)
    }

    fn store(&self, limit: u64) -> Store {
        Store::new(self.dir.path().join("cache"), Bytes(limit), Vec::new(), self.dir.path().to_owned())
    }

    fn entry(&self) -> PathBuf {
        self.dir.path().join("cache").join(cache::hex(&self.model.hash))
    }

    /// Prepares the ranges with `store`, and reads them back.
    fn prepare(&self, store: &Store, peer: &Arc<Peer>, ranges: &[Range<u64>]) -> Result<Bytes, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("runtime");
        let needs =
            Needs { model: self.model.clone(), ranges: ranges.to_vec(), mapped: Some(ranges[0].clone()) };
        let meter = Arc::new(Meter::default());
        let peer: Arc<dyn ChunkSource> = Arc::<Peer>::clone(peer);
        let source = runtime.block_on(store.prepare(needs, peer, Cancel::default(), Arc::clone(&meter)))?;
        for range in ranges {
            let mut out = vec![0; (range.end - range.start) as usize];
            source.read_range(range.start, &mut out).expect("read");
            assert!(out == self.file[range.start as usize..range.end as usize], "{range:?}");
        }
        if let Some(map) = source.map() {
            let range = ranges[0].start as usize..ranges[0].end as usize;
            assert!(map[range.clone()] == self.file[range]);
        }
        Ok(meter.fetched())
    }
}

#[test]
fn only_what_is_needed_is_fetched_and_a_second_start_fetches_nothing() {
    let setting = Setting::new(20 * CHUNK as usize + 77);
    let peer = Arc::new(setting.peer());
    let ranges = [5 * CHUNK + 10..8 * CHUNK, 100..200, 20 * CHUNK..20 * CHUNK + 77];
    let fetched = setting.prepare(&setting.store(1 << 30), &peer, &ranges).expect("first");
    assert_eq!((fetched, peer.asked()), (Bytes(4 * CHUNK + 77), 5));
    let again = setting.prepare(&setting.store(1 << 30), &peer, &ranges).expect("second");
    assert_eq!((again, peer.asked()), (Bytes(0), 5));
    // Another plan needs one more chunk.
    let other = setting.prepare(&setting.store(1 << 30), &peer, &[7 * CHUNK..9 * CHUNK]).expect("third");
    assert_eq!((other, peer.asked()), (Bytes(CHUNK), 6));
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let setting = Setting::new(16 * CHUNK as usize);
    let store = setting.store(1 << 30);
    let peer = Arc::new(Peer { fails_after: 6, ..setting.peer() });
    let all = [0..16 * CHUNK];
    assert!(matches!(setting.prepare(&store, &peer, &all), Err(StoreError::Fetch(_))));
    let peer = Arc::new(setting.peer());
    let fetched = setting.prepare(&setting.store(1 << 30), &peer, &all).expect("resumed");
    assert!(fetched.0 < 16 * CHUNK && fetched.0 >= 10 * CHUNK, "{fetched}");
}

#[test]
fn damage_on_disk_is_found_and_mended() {
    let setting = Setting::new(8 * CHUNK as usize);
    let peer = Arc::new(setting.peer());
    let all = [0..8 * CHUNK];
    setting.prepare(&setting.store(1 << 30), &peer, &all).expect("first");
    let data = setting.entry().join("data");
    let mut bytes = std::fs::read(&data).expect("data");
    bytes[3 * CHUNK as usize + 5] ^= 1;
    std::fs::write(&data, &bytes).expect("damage");
    // A torn end: the system lost the last pages and the record of them says otherwise.
    std::fs::File::options().write(true).open(&data).expect("data").set_len(7 * CHUNK + 9).expect("cut");
    let fetched = setting.prepare(&setting.store(1 << 30), &peer, &all).expect("mended");
    assert_eq!(fetched, Bytes(2 * CHUNK));
    // A list and a record that are no such thing.
    std::fs::write(setting.entry().join("list"), b"rubbish").expect("damage");
    std::fs::write(setting.entry().join("have"), b"rubbish").expect("damage");
    assert_eq!(setting.prepare(&setting.store(1 << 30), &peer, &all).expect("again"), Bytes(8 * CHUNK));
}

#[test]
fn a_lying_peer_is_asked_twice_and_then_named() {
    let setting = Setting::new(8 * CHUNK as usize);
    let peer = Arc::new(Peer { lies_every: 5, ..setting.peer() });
    setting.prepare(&setting.store(1 << 30), &peer, &[0..8 * CHUNK]).expect("every fifth");
    let setting = Setting::new(8 * CHUNK as usize);
    let peer = Arc::new(Peer { lies_every: 1, ..setting.peer() });
    let error = setting.prepare(&setting.store(1 << 30), &peer, &[0..8 * CHUNK]);
    assert!(matches!(error, Err(StoreError::Corrupt { .. })));
    assert!(!setting.entry().join("data").metadata().is_ok_and(|data| occupied(&data) > 0));
    let setting = Setting::new(8 * CHUNK as usize);
    let peer = Arc::new(Peer { list: vec![0; 8 * 32], ..setting.peer() });
    let error = setting.prepare(&setting.store(1 << 30), &peer, &[0..8 * CHUNK]);
    assert!(matches!(error, Err(StoreError::List(ChunkListError::Hash))));
}

#[test]
fn a_small_cache_is_kept_within_its_bound_and_the_rest_is_used_without_being_kept() {
    let setting = Setting::new(16 * CHUNK as usize);
    let peer = Arc::new(setting.peer());
    let all = [0..16 * CHUNK];
    let store = setting.store(4 * CHUNK);
    // The read below fetches what had no room.
    let fetched = setting.prepare(&store, &peer, &all).expect("first");
    assert_eq!(fetched, Bytes(16 * CHUNK));
    let data = setting.entry().join("data").metadata().expect("data");
    assert!(occupied(&data) <= 4 * CHUNK, "{}", occupied(&data));
    assert_eq!(setting.prepare(&store, &peer, &all).expect("second"), Bytes(12 * CHUNK));
    // With no room at all it works as well.
    let none = Setting::new(4 * CHUNK as usize);
    let peer = Arc::new(none.peer());
    assert_eq!(none.prepare(&none.store(0), &peer, &[0..4 * CHUNK]).expect("none"), Bytes(4 * CHUNK));
}

#[test]
fn the_model_unused_for_longest_goes_and_never_one_in_use() {
    let dir = tempfile::tempdir().expect("folder");
    let limit = Bytes(8 * CHUNK);
    let put = |cache: &Cache, seed: u8, age: u64| {
        let (file, model, list) = model(4 * CHUNK as usize, seed);
        let entry = cache.open(&model).expect("open");
        let list = ChunkList::parse(&model, &list).expect("list");
        let missing = entry.missing(&list, &[0, 1, 2, 3], &Cancel::default(), |_| {}).expect("missing");
        let kept = cache.promise(&entry, &list, &missing).expect("promise");
        for &index in &kept {
            let range = list.range(index);
            entry.put(&list, index, &file[range.start as usize..range.end as usize]).expect("put");
        }
        let lock =
            std::fs::File::options().write(true).open(dir.path().join(cache::hex(&model.hash)).join("lock"));
        let used = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        lock.expect("lock").set_modified(used).expect("time");
        (entry, dir.path().join(cache::hex(&model.hash)), kept.len())
    };
    let cache = Cache::new(dir.path().to_owned(), limit);
    let (old, old_dir, _) = put(&cache, 1, 300);
    let (older, older_dir, _) = put(&cache, 2, 600);
    drop((old, older));
    let (third, third_dir, kept) = put(&cache, 3, 0);
    assert_eq!(kept, 4);
    assert!(old_dir.exists() && !older_dir.exists() && third_dir.exists());
    // Both others are in use by a second worker: nothing can go, and what has no room is not kept.
    let second = Cache::new(dir.path().to_owned(), limit);
    let (_, model, _) = model(4 * CHUNK as usize, 1);
    let old = second.open(&model).expect("open");
    let (fourth, _, kept) = put(&cache, 4, 0);
    assert_eq!(kept, 0);
    assert!(old_dir.exists() && third_dir.exists());
    drop((third, old, fourth));
    let (_, _, kept) = put(&cache, 5, 0);
    assert_eq!(kept, 4);
}

#[test]
fn two_workers_may_share_a_cache() {
    let setting = Setting::new(64 * CHUNK as usize);
    let all = [0..64 * CHUNK];
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let peer = Arc::new(setting.peer());
                setting.prepare(&setting.store(1 << 30), &peer, &all).expect("together");
            });
        }
    });
    let peer = Arc::new(setting.peer());
    assert_eq!(setting.prepare(&setting.store(1 << 30), &peer, &all).expect("after"), Bytes(0));
}

#[test]
fn a_full_disk_is_an_error_that_says_so_and_loses_nothing() {
    static LEFT: AtomicUsize = AtomicUsize::new(5);
    fn full_after_five(file: &std::fs::File, bytes: &[u8], at: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let left = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            // A disk that fills up may have taken a part.
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(bytes, at)
    }
    let setting = Setting::new(16 * CHUNK as usize);
    let peer = Arc::new(setting.peer());
    let mut cache = Cache::new(setting.dir.path().join("cache"), Bytes(1 << 30));
    cache.write_at = full_after_five;
    let store = Store { cache: Arc::new(cache), ..setting.store(0) };
    let all = [0..16 * CHUNK];
    let error = setting.prepare(&store, &peer, &all).expect_err("full");
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("disk is full"), "{error}");
    let fetched = setting.prepare(&setting.store(1 << 30), &peer, &all).expect("space again");
    assert_eq!(fetched, Bytes(11 * CHUNK));
}

#[test]
fn a_local_copy_is_used_and_nothing_is_fetched() {
    let setting = Setting::new(4 * CHUNK as usize);
    let models = setting.dir.path().join("models");
    std::fs::create_dir(&models).expect("folder");
    std::fs::write(models.join("other-name.gguf"), &setting.file).expect("copy");
    let cache = setting.dir.path().join("cache");
    let store = Store::new(cache.clone(), Bytes(1 << 30), vec![models], setting.dir.path().to_owned());
    let peer = Arc::new(setting.peer());
    assert_eq!(setting.prepare(&store, &peer, &[10..3 * CHUNK]).expect("copy"), Bytes(0));
    assert_eq!(peer.asked(), 0);
    assert!(!Path::new(&cache).exists(), "the cache is not needed");
}

#[test]
fn an_unwritable_cache_is_an_error() {
    let setting = Setting::new(4 * CHUNK as usize);
    std::fs::write(setting.dir.path().join("cache"), b"a file").expect("write");
    let peer = Arc::new(setting.peer());
    let error = setting.prepare(&setting.store(1 << 30), &peer, &[0..1]).expect_err("no folder");
    assert!(matches!(error, StoreError::Io { what: "create", .. }), "{error}");
}

fn occupied(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}
