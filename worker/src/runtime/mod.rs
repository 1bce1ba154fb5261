//! The compute thread: owns the shard and the kernel pool, runs steps in order, serves the output head.
//!
//! One plain thread, never an async runtime's, does everything that touches weights. It takes
//! commands from the driver and tells it [`Event`]s; blocks of activations it sends and awaits itself
//! on the data plane. While it waits for its next input it serves head work and questions, head work
//! first, and between two layers head work whose rows are there; so no rank ever waits for a rank that
//! waits for it, and no stream for another's layers.
//!
//! | part | what it is |
//! |---|---|
//! | `job` | a loaded plan: its steps, its head work, its counters |
//! | `exchange` | blocks to and from other nodes, each checked against the plan |
//! | [`NetGroup`] | the ranks of a stage over the data plane: the engine's [`Group`](shoal_engine::model::Group) |
//!
//! The driver ends an epoch with [`Compute::unload`], which interrupts whatever the thread does with it at
//! the next exchange or layer. Orders were checked by `shoal_cluster::worker::Machine` before they come here.

mod exchange;
mod group;
mod job;

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shoal_cluster::worker::Event;
use shoal_core::head::HeadQuery;
use shoal_core::message::{Failure, StepOrder};
use shoal_core::model::ModelSpec;
use shoal_core::{Epoch, NodeId, Plan, StepId};
use shoal_engine::pool::{self, Pool};
use shoal_net::DataPlane;
use shoal_net::data::Notifier;
use tokio::sync::mpsc::UnboundedSender;

use crate::emulate::Emulated;
use crate::measure;
use crate::store::SharedSource;
use job::Job;

pub use exchange::ExchangeError;
pub use group::NetGroup;

/// How long a block may let a worker wait. The coordinator judges a step by its prediction, and a lost
/// connection is noticed within a second; this ends what neither of them sees, on the slowest board.
pub const BLOCK_DEADLINE: Duration = Duration::from_secs(60);

/// How long the other workers of a plan may take until they can be reached.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long the thread may take to end.
const QUIT: Duration = Duration::from_secs(1);

/// A shard to be loaded.
pub struct Loading {
    pub spec: Arc<ModelSpec>,
    pub plan: Arc<Plan>,
    /// Kept for as long as the shard lives: the table is mapped from it.
    pub source: SharedSource,
}

impl std::fmt::Debug for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loading").field("epoch", &self.plan.epoch).finish_non_exhaustive()
    }
}

/// What the compute thread can be told.
enum Command {
    Profile(Box<ModelSpec>),
    Load(Loading),
    Step(Box<StepOrder>),
    Query { epoch: Epoch, step: StepId, row: u32, query: HeadQuery },
    Settle { epoch: Epoch, step: StepId },
    Report(Epoch),
    Unload(Epoch),
    Quit,
}

/// The compute thread, as the driver has it.
#[derive(Debug)]
pub struct Compute {
    commands: Sender<Command>,
    notifier: Notifier,
    interrupt: Interrupt,
    thread: Option<JoinHandle<()>>,
}

/// Which epochs are over, whatever the compute thread still does with them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<Mutex<Option<Epoch>>>);

impl Interrupt {
    /// `epoch` and older ones are over.
    pub(crate) fn end(&self, epoch: Epoch) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = (*ended).max(Some(epoch));
    }

    pub(crate) fn is_over(&self, epoch: Epoch) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) >= Some(epoch)
    }
}

impl Compute {
    /// Starts the thread with `threads` kernel threads (itself one of them). What happens is told to
    /// `events`. With `emulated` it plays that device.
    ///
    /// # Errors
    /// The system refuses threads.
    pub fn start(
        node: NodeId,
        threads: u32,
        plane: Arc<DataPlane>,
        events: UnboundedSender<Event>,
        emulated: Option<Arc<Emulated>>,
    ) -> io::Result<Self> {
        let (commands, queue) = channel();
        let (interrupt, notifier) = (Interrupt::default(), plane.notifier());
        // Cores are taken for good only where the whole machine is this worker's, which it is not where it
        // plays another one.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pinned = threads > 1 && threads as usize == cores && emulated.is_none();
        let pool = if pinned { Pool::pinned(cores)? } else { Pool::new(threads as usize)? };
        let pool = Arc::new(pool);
        let thread = Thread {
            pinned,
            node,
            plane,
            pool,
            queue,
            events,
            interrupt: interrupt.clone(),
            job: None,
            emulated,
        };
        let thread = std::thread::Builder::new().name("compute".to_owned()).spawn(move || thread.run())?;
        Ok(Self { commands, notifier, interrupt, thread: Some(thread) })
    }

    /// Measures this device; told as [`Event::Profiled`].
    pub fn profile(&self, spec: Box<ModelSpec>) {
        self.send(Command::Profile(spec));
    }

    /// Loads a shard, waits for the peers of the data plane and warms up; told as [`Event::Loaded`].
    pub fn load(&self, loading: Loading) {
        self.send(Command::Load(loading));
    }

    /// [`Compute::load`] for a task that prepares what is to be loaded.
    pub fn loader(&self) -> impl FnOnce(Loading) + Send + use<> {
        let (commands, notifier) = (self.commands.clone(), self.notifier.clone());
        move |loading| {
            let _ = commands.send(Command::Load(loading));
            notifier.notify();
        }
    }

    /// Runs a step after those before it; told as [`Event::StepDone`].
    pub fn step(&self, order: Box<StepOrder>) {
        self.send(Command::Step(order));
    }

    /// Answers a question about a row; told as [`Event::Queried`].
    pub fn query(&self, epoch: Epoch, step: StepId, row: u32, query: HeadQuery) {
        self.send(Command::Query { epoch, step, row, query });
    }

    /// Logits of steps up to this one need not be kept.
    pub fn settle(&self, epoch: Epoch, step: StepId) {
        self.send(Command::Settle { epoch, step });
    }

    /// Says the counters; told as [`Event::Reported`].
    pub fn report(&self, epoch: Epoch) {
        self.send(Command::Report(epoch));
    }

    /// Drops the shard of `epoch` and ends what is being done with it; told as [`Event::Dropped`]. The
    /// data plane's epoch and a load's source are ended by the caller.
    pub fn unload(&self, epoch: Epoch) {
        self.interrupt.end(epoch);
        self.send(Command::Unload(epoch));
    }

    /// Whether the thread has ended, which it does by itself only when it panicked.
    pub fn is_dead(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn send(&self, command: Command) {
        // A thread that is gone has panicked: see `is_dead`.
        let _ = self.commands.send(command);
        self.notifier.notify();
    }
}

impl Drop for Compute {
    /// Ends the thread, and waits for it a while: a kernel in the midst of a long prompt is left behind.
    fn drop(&mut self) {
        self.interrupt.end(Epoch { term: shoal_core::Term(u64::MAX), counter: u32::MAX });
        self.send(Command::Quit);
        let deadline = Instant::now() + QUIT;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

struct Thread {
    pinned: bool,
    node: NodeId,
    plane: Arc<DataPlane>,
    pool: Arc<Pool>,
    queue: Receiver<Command>,
    events: UnboundedSender<Event>,
    interrupt: Interrupt,
    job: Option<Job>,
    emulated: Option<Arc<Emulated>>,
}

impl Thread {
    fn run(mut self) {
        if self.pinned {
            pool::pin(0);
        }
        loop {
            let command = match &self.job {
                None => self.queue.recv().map_err(|_| TryRecvError::Disconnected),
                Some(_) => self.queue.try_recv(),
            };
            match command {
                Ok(Command::Quit) | Err(TryRecvError::Disconnected) => return,
                Ok(command) => self.handle(command),
                Err(TryRecvError::Empty) => {
                    if let Some(job) = &mut self.job {
                        job.advance();
                    }
                }
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Profile(spec) => {
                if let Some(emulated) = &self.emulated {
                    return self.tell(Event::Profiled(Ok(Box::new(emulated.profile()))));
                }
                let result = measure::profile(&spec, &self.pool).map(Box::new);
                self.tell(Event::Profiled(result.map_err(|error| failure(error.to_string()))));
            }
            Command::Load(loading) => self.load(loading),
            Command::Step(order) => {
                if let Some(job) = self.job_of(order.epoch) {
                    job.step(order);
                }
            }
            Command::Query { epoch, step, row, query } => {
                if let Some(job) = self.job_of(epoch) {
                    job.query(step, row, query);
                }
            }
            Command::Settle { epoch, step } => {
                if let Some(job) = self.job_of(epoch) {
                    job.settle(step);
                }
            }
            Command::Report(epoch) => {
                if let Some(job) = self.job_of(epoch) {
                    job.report();
                }
            }
            Command::Unload(epoch) => {
                if self.job.as_ref().is_some_and(|job| job.epoch() <= epoch) {
                    self.job = None;
                }
                self.tell(Event::Dropped { epoch });
            }
            Command::Quit => {}
        }
    }

    fn load(&mut self, loading: Loading) {
        let epoch = loading.plan.epoch;
        self.job = None;
        let loaded = Job::load(
            loading,
            self.node,
            &self.plane,
            &self.pool,
            self.events.clone(),
            self.interrupt.clone(),
            self.emulated.as_deref(),
        );
        let result = loaded.map(|(job, resident)| {
            self.job = Some(job);
            // What was fetched is the driver's to say.
            (resident, shoal_core::units::Bytes(0))
        });
        self.tell(Event::Loaded { epoch, result });
    }

    fn job_of(&mut self, epoch: Epoch) -> Option<&mut Job> {
        self.job.as_mut().filter(|job| job.epoch() == epoch)
    }

    fn tell(&self, event: Event) {
        // Without a driver there is nobody to tell; the queue's end follows.
        let _ = self.events.send(event);
    }
}

/// A failure that is this node's own.
pub(crate) fn failure(message: String) -> Failure {
    Failure { message, blame: None }
}
