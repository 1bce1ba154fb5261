//! A fixed pool of kernel threads.
//!
//! [`Pool::run`] calls a closure once for each worker index, on threads that exist already: no spawning and no
//! allocation per call. Workers wait by spinning briefly, because the next piece of a forward pass comes within
//! microseconds, and then park, because an idle board should be cool. Work is split statically ([`split`]): who computes
//! what is a function of the sizes alone. The compute thread of a worker owns one pool; it is worker 0 itself.

#![expect(unsafe_code, reason = "hands a borrowed closure to threads that outlive it, and pins threads")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Polls of the job counter before a waiting thread parks: about 20 to 50 µs, longer than the gaps between the matrices
/// of a layer, shorter than a network round trip.
pub const SPINS: u32 = 4_000;

/// Polls between yields while spinning, so that more threads than cores still make progress.
const SPINS_PER_YIELD: u32 = 256;

/// Threads that share the work of each [`Pool::run`].
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The spawned threads, to wake them.
    threads: Vec<Thread>,
}

impl Pool {
    /// A pool of `threads` workers (at least one): the calling thread and `threads - 1` spawned ones.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::spawn(threads, false)
    }

    /// Like [`Pool::new`], with each spawned worker pinned to a core of its own (worker `i` to the `i`-th core that this
    /// process may use), where the system can pin; elsewhere not pinned. The caller pins itself with [`pin`].
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn pinned(threads: usize) -> std::io::Result<Self> {
        Self::spawn(threads, true)
    }

    fn spawn(threads: usize, pinned: bool) -> std::io::Result<Self> {
        let mut pool = Self { shared: Arc::default(), workers: Vec::new(), threads: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("kernel-{index}"));
            let handle = builder.spawn(move || {
                if pinned {
                    pin(index);
                }
                shared.work(index);
            })?;
            pool.threads.push(handle.thread().clone());
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(index)` once for each index below [`Pool::threads`], index 0 on this thread, and returns when all are
    /// done. A call from within a job, or while another thread runs one, runs all indices on the calling thread: slower,
    /// never stuck, and the same result.
    ///
    /// # Panics
    /// When a job panics, the panic continues here after all other indices are done.
    pub fn run(&self, job: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || self.shared.busy.swap(true, Ordering::Acquire) {
            (0..self.threads()).for_each(&job);
            return;
        }
        let erased: &(dyn Fn(usize) + Sync) = &job;
        // SAFETY: only the lifetime changes. Workers use the reference between the store to `epoch` below and their
        // decrement of `left`; this function does not return, or unwind, before `left` is zero.
        let erased: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(erased) };
        // SAFETY: `busy` is ours and no worker is between those two points, so nobody reads the cells now.
        unsafe {
            *self.shared.job.get() = Some(erased);
            *self.shared.caller.get() = Some(thread::current());
        }
        self.shared.left.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, parked) in self.threads.iter().zip(&self.shared.parked) {
            if parked.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        if self.threads.len() > self.shared.parked.len() {
            self.threads[self.shared.parked.len()..].iter().for_each(Thread::unpark);
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.shared.wait_for_workers();
        let theirs = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.busy.store(false, Ordering::Release);
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Calls `job` with each worker's part of `0..items`, cut on multiples of `grain`; workers without a part are not
    /// called.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_ranges(&self, items: usize, grain: usize, job: impl Fn(Range<usize>) + Sync) {
        if items <= grain || self.workers.is_empty() {
            if items > 0 {
                job(0..items);
            }
            return;
        }
        self.run(|index| {
            let range = split(items, grain, self.threads(), index);
            if !range.is_empty() {
                job(range);
            }
        });
    }

    /// Like [`Pool::for_ranges`] over three slices of `items` times so many elements each: `job` gets the first item's
    /// index and its own part of every slice.
    ///
    /// # Panics
    /// When a slice is not `items` times its number of elements long, and as [`Pool::run`].
    pub fn for_slices<A: Send, B: Send, C: Send>(
        &self,
        items: usize,
        grain: usize,
        (a, per_a): (&mut [A], usize),
        (b, per_b): (&mut [B], usize),
        (c, per_c): (&mut [C], usize),
        job: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
    ) {
        let (a, b, c) =
            (Shares::new(a, items, per_a), Shares::new(b, items, per_b), Shares::new(c, items, per_c));
        self.for_ranges(items, grain, |range| {
            // SAFETY: `for_ranges` hands out each index once and in range.
            let (a, b, c) = unsafe { (a.part(&range), b.part(&range), c.part(&range)) };
            job(range.start, a, b, c);
        });
    }
}

/// A slice of which threads take parts that do not overlap.
struct Shares<'a, T> {
    start: *mut T,
    items: usize,
    per_item: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts of a `&mut [T]` may go to other threads when `T` may; `part` asks that they do not overlap.
unsafe impl<T: Send> Sync for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    fn new(slice: &'a mut [T], items: usize, per_item: usize) -> Self {
        assert_eq!(slice.len(), items * per_item, "a slice of {items} items of {per_item}");
        Self { start: slice.as_mut_ptr(), items, per_item, slice: PhantomData }
    }

    /// # Safety
    /// Parts taken while others live must not overlap.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint by the caller's promise")]
    unsafe fn part(&self, range: &Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.items);
        // SAFETY: in bounds by the assertion, not aliased by the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.add(range.start * self.per_item),
                range.len() * self.per_item,
            )
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs, so it ends without one.
            let _ = worker.join();
        }
    }
}

/// Part `index` of `0..items` cut into `parts`, borders on multiples of `grain`, as even as that allows.
#[must_use]
pub fn split(items: usize, grain: usize, parts: usize, index: usize) -> Range<usize> {
    let grains = items.div_ceil(grain);
    let border = |i: usize| (grains * i / parts * grain).min(items);
    border(index)..border(index + 1)
}

/// Pins the calling thread to the `index`-th core that it may use now; false where that is impossible.
#[cfg(target_os = "linux")]
pub fn pin(index: usize) -> bool {
    // SAFETY: the set is plain data of the size that is passed, and the calls touch nothing else.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, &raw mut allowed) != 0 {
            return false;
        }
        let cores = (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &allowed));
        let count = cores.clone().count().max(1);
        let Some(core) = cores.clone().nth(index % count) else { return false };
        let mut own: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut own);
        libc::sched_setaffinity(0, size, &raw const own) == 0
    }
}

/// Pins the calling thread to the `index`-th core that it may use now; false where that is impossible.
#[cfg(not(target_os = "linux"))]
pub fn pin(_index: usize) -> bool {
    false
}

/// Workers whose parking is tracked; any beyond are woken each time.
const TRACKED: usize = 64;

struct Shared {
    /// Raised once per job; workers wait for a change.
    epoch: AtomicUsize,
    /// Spawned workers that have not finished the current job.
    left: AtomicUsize,
    busy: AtomicBool,
    stop: AtomicBool,
    caller_parked: AtomicBool,
    parked: [AtomicBool; TRACKED],
    /// Written by the owner of `busy` while no worker runs.
    job: UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
    caller: UnsafeCell<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the cells are written only by the thread that holds `busy`, before the release of `epoch`, and read by workers
// after acquiring `epoch` and before their decrement of `left`; the writer waits for `left` to be zero before it gives
// up `busy`.
unsafe impl Sync for Shared {}
// SAFETY: `Thread`, the references and the payload are all `Send`.
unsafe impl Send for Shared {}

impl Default for Shared {
    fn default() -> Self {
        Self {
            epoch: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            caller_parked: AtomicBool::new(false),
            parked: [const { AtomicBool::new(false) }; TRACKED],
            job: UnsafeCell::new(None),
            caller: UnsafeCell::new(None),
            panic: Mutex::new(None),
        }
    }
}

impl Shared {
    /// The life of a spawned worker.
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let parked = self.parked.get(index - 1);
            wait(|| self.epoch.load(Ordering::SeqCst) != seen, parked);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: see `Sync` above: between the change of `epoch` and the decrement of `left`.
            let (job, caller) = unsafe { (*self.job.get(), (*self.caller.get()).clone()) };
            if let Some(job) = job
                && let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index)))
            {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            }
            if self.left.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_parked.load(Ordering::SeqCst)
                && let Some(caller) = caller
            {
                caller.unpark();
            }
        }
    }

    fn wait_for_workers(&self) {
        wait(|| self.left.load(Ordering::SeqCst) == 0, Some(&self.caller_parked));
    }
}

/// Spins, then parks, until `ready`. `parked` tells the waker that it must unpark; without it, it always does.
fn wait(ready: impl Fn() -> bool, parked: Option<&AtomicBool>) {
    for spin in 1..=SPINS {
        if ready() {
            return;
        }
        if spin % SPINS_PER_YIELD == 0 {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
    if let Some(flag) = parked {
        flag.store(true, Ordering::SeqCst);
    }
    // The flag is set before this check and the waker changes the state before it reads the flag: one of the two sees
    // the other.
    while !ready() {
        thread::park();
    }
    if let Some(flag) = parked {
        flag.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_index_runs_once_each_time() {
        for threads in [1, 2, 3, 5, 70] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..300 {
                pool.run(|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                if round % 100 == 0 {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 300));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|index| assert!(index != bad, "job {bad} failed"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("job {bad} failed"));
        }
        let sum = AtomicUsize::new(0);
        pool.run(|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3);
    }

    #[test]
    fn a_job_may_call_the_pool() {
        let pool = Pool::pinned(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(|_| {
            pool.run(|index| {
                sum.fetch_add(index + 1, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 6);
    }

    #[test]
    fn splits_cover_without_overlap() {
        for (items, grain, parts) in [(10, 4, 3), (1, 1, 5), (0, 1, 2), (512, 1, 3), (33, 32, 2)] {
            let mut end = 0;
            for index in 0..parts {
                let range = split(items, grain, parts, index);
                assert!(range.start == end && range.end >= range.start);
                assert!(range.end == items || range.end.is_multiple_of(grain));
                end = range.end;
            }
            assert_eq!(end, items);
        }
    }
}
