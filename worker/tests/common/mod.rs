//! A scripted coordinator with worker processes, and plans over the small model.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::allow_attributes, reason = "what one test file does not use, another does")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shoal_core::frame::WireType;
use shoal_core::ids::{Epoch, Term};
use shoal_core::limits::PROTOCOL_VERSION;
use shoal_core::message::{Answer, Hash, ModelRef, Order, Peer};
use shoal_core::plan::{
    AllReduce, HeadShare, KvBudget, Plan, PlanParts, Share, Span, Stage, Strategy, Sums, Wire,
};
use shoal_core::profile::NodeInfo;
use shoal_core::units::Bytes;
use shoal_core::{ModelSpec, NodeId};
use shoal_net::control::{Arrival, ControlReceiver, ControlSender, Link};
use shoal_net::token::{TOKEN_LIFE, UnixSeconds};
use shoal_net::{Authority, CoordinatorEndpoint, TokenStore};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

pub(crate) const MODEL: &[u8] = include_bytes!("../../../shared/engine/tests/data/models/stories-Q8_0.gguf");
const CHUNK: usize = 64 << 10;

/// How long anything may take here, on a machine that builds something else meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn spec() -> ModelSpec {
    let file = shoal_engine::gguf::Gguf::parse(MODEL, MODEL.len() as u64).expect("gguf");
    shoal_engine::model::spec(&file, "stories").expect("spec")
}

pub(crate) fn model_ref() -> ModelRef {
    let list = chunk_hashes().concat();
    ModelRef {
        hash: *blake3::hash(MODEL).as_bytes(),
        chunks_hash: *blake3::hash(&list).as_bytes(),
        file_bytes: Bytes(MODEL.len() as u64),
        chunk_bytes: CHUNK as u32,
        file_name: "stories-Q8_0.gguf".to_owned(),
    }
}

fn chunk_hashes() -> Vec<Hash> {
    MODEL.chunks(CHUNK).map(|chunk| *blake3::hash(chunk).as_bytes()).collect()
}

struct ModelChunks;

impl shoal_net::chunks::ChunkSource for ModelChunks {
    fn hashes(&self, _: &Hash) -> std::io::Result<Vec<Hash>> {
        Ok(chunk_hashes())
    }

    fn chunk(&self, _: &Hash, index: u32) -> std::io::Result<Vec<u8>> {
        let chunk = MODEL.chunks(CHUNK).nth(index as usize);
        chunk.map(<[u8]>::to_vec).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

/// The stages of a plan: layers and nodes of each; heads and columns are shared equally.
pub(crate) struct Layout<'a> {
    pub stages: &'a [(u32, &'a [NodeId])],
    pub head: &'a [NodeId],
    pub way: AllReduce,
    pub sum: WireType,
    pub chunk_tokens: u32,
}

pub(crate) fn plan(spec: &ModelSpec, epoch: Epoch, layout: &Layout<'_>) -> Plan {
    let mut first = 0;
    let stages = layout.stages.iter().map(|&(layers, nodes)| {
        let layers = Span::new(first, first + layers);
        first = layers.end;
        Stage { layers, ranks: shares(spec, nodes), sums: Sums::all(layout.way) }
    });
    let stages: Vec<Stage> = stages.collect();
    let tiles = spec.vocab_tiles();
    let n = layout.head.len() as u32;
    let border = |index: u32| (tiles * index / n * 256).min(spec.vocab);
    let head = layout.head.iter().enumerate().map(|(index, &node)| {
        let index = index as u32;
        let end = if index + 1 == n { spec.vocab } else { border(index + 1) };
        HeadShare { node, rows: Span::new(border(index), end) }
    });
    let parts = PlanParts {
        epoch,
        strategy: Strategy::Hybrid,
        stages,
        head: head.collect(),
        chunk_tokens: layout.chunk_tokens,
        wire: Wire { hop: WireType::F32, sum: layout.sum },
        kv: KvBudget { context: 128, sequences: 2 },
    };
    Plan::try_new(parts, spec).expect("plan")
}

pub(crate) fn shares(spec: &ModelSpec, nodes: &[NodeId]) -> Vec<Share> {
    let n = nodes.len() as u32;
    let block = spec.ffn_block();
    let mut owned = 0;
    let share = |(rank, &node): (usize, &NodeId)| {
        let rank = rank as u32;
        let q_heads = Span::new(spec.n_heads * rank / n, spec.n_heads * (rank + 1) / n);
        let group = spec.group_size();
        let kv_heads = if q_heads.is_empty() {
            Span::new(owned, owned)
        } else {
            Span::new(q_heads.first / group, q_heads.end.div_ceil(group))
        };
        let kv_owned = Span::new(kv_heads.first.max(owned), kv_heads.end.max(owned));
        owned = owned.max(kv_owned.end);
        let border = |rank: u32| spec.ffn / block * rank / n * block;
        let ffn = Span::new(border(rank), if rank + 1 == n { spec.ffn } else { border(rank + 1) });
        Share { node, q_heads, kv_heads, kv_owned, ffn }
    };
    nodes.iter().enumerate().map(share).collect()
}

/// A worker process of this test; killed when dropped.
pub(crate) struct Process {
    pub child: Child,
}

impl Process {
    /// [`Process::start`] with environment variables.
    pub(crate) fn start_with(dir: &Path, address: SocketAddr, more: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Self::command(dir, address, more);
        Self { child: command.envs(env.iter().copied()).spawn().expect("worker") }
    }

    /// Starts a worker in `dir` that joins the coordinator at `address`.
    pub(crate) fn start(dir: &Path, address: SocketAddr, more: &[&str]) -> Self {
        Self { child: Self::command(dir, address, more).spawn().expect("worker") }
    }

    fn command(dir: &Path, address: SocketAddr, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-worker"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("SHOAL_") && variable != "SHOAL_LOG" {
                command.env_remove(&variable);
            }
        }
        let path = |name: &str| dir.join(name).to_str().expect("path").to_owned();
        command.args(["--no-mdns", "--threads", "1"]);
        for (name, value) in [("--listen", "127.0.0.1:0"), ("--memory", "1GB")] {
            if !more.contains(&name) {
                command.args([name, value]);
            }
        }
        command.args(["--data-dir", &path("data"), "--cache-dir", &path("cache")]);
        command.args(["--coordinator", &address.to_string()]);
        command.args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command
    }

    pub(crate) fn id(&self) -> String {
        self.child.id().to_string()
    }

    /// Its exit code, once it has ended by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<i32> {
        let start = std::time::Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The coordinator's end of a worker.
pub(crate) struct Worker {
    pub info: NodeInfo,
    pub link: Link,
    pub orders: ControlSender<Order>,
}

/// A coordinator that does what the test says.
pub(crate) struct Coordinator {
    pub dir: TempDir,
    pub endpoint: CoordinatorEndpoint<Order, Answer>,
    pub authority: Arc<Authority>,
    pub tokens: TokenStore,
    pub term: Term,
    pub workers: BTreeMap<NodeId, Worker>,
    answers: UnboundedReceiver<(NodeId, Option<Answer>)>,
    teller: UnboundedSender<(NodeId, Option<Answer>)>,
}

impl Coordinator {
    pub(crate) fn start(term: u64) -> Self {
        Self::start_in(tempfile::tempdir().expect("folder"), term)
    }

    /// The coordinator of the authority in `dir`, once more.
    pub(crate) fn start_in(dir: TempDir, term: u64) -> Self {
        let authority = Arc::new(Authority::load_or_create(dir.path()).expect("authority"));
        let tokens = TokenStore::new(dir.path());
        let address = "127.0.0.1:0".parse().expect("address");
        let endpoint =
            CoordinatorEndpoint::bind(address, authority.clone(), tokens.clone()).expect("endpoint");
        let (teller, answers) = unbounded_channel();
        Self { dir, endpoint, authority, tokens, term: Term(term), workers: BTreeMap::new(), answers, teller }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_address().expect("address")
    }

    /// A file with a join token of so many uses.
    pub(crate) fn token_file(&self, uses: u32) -> String {
        let token =
            self.tokens.issue(self.authority.id(), uses, TOKEN_LIFE, UnixSeconds::now()).expect("token");
        let path = self.dir.path().join("token");
        std::fs::write(&path, token.reveal()).expect("token");
        path.to_str().expect("path").to_owned()
    }

    /// Waits until so many workers are connected and greeted.
    pub(crate) async fn gather(&mut self, n: usize) {
        while self.workers.len() < n {
            let arrival =
                timeout(PATIENCE, self.endpoint.arrival()).await.expect("in time").expect("arrival");
            if let Arrival::Connected(mut conn) = arrival {
                let hello =
                    Order::Hello { protocol: PROTOCOL_VERSION, term: self.term, cluster: "test".to_owned() };
                conn.send(&hello).await.expect("hello");
                match timeout(PATIENCE, conn.recv()).await.expect("in time") {
                    Ok(Answer::Welcome { info, .. }) => self.take(conn, *info),
                    other => panic!("not welcome: {other:?}"),
                }
            }
        }
    }

    fn take(&mut self, conn: shoal_net::ControlConn<Order, Answer>, info: NodeInfo) {
        let node = conn.node();
        let (link, orders, receiver) = conn.split();
        tokio::spawn(shoal_net::chunks::serve(link.clone(), Arc::new(ModelChunks)));
        tokio::spawn(forward(node, receiver, self.teller.clone()));
        self.workers.insert(node, Worker { info, link, orders });
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.workers.keys().copied().collect()
    }

    pub(crate) async fn send(&mut self, node: NodeId, order: &Order) {
        self.workers.get_mut(&node).expect("worker").orders.send(order).await.expect("send");
    }

    pub(crate) async fn send_all(&mut self, order: &Order) {
        for node in self.nodes() {
            self.send(node, order).await;
        }
    }

    /// The next answer, or the end of a connection.
    pub(crate) async fn next(&mut self) -> (NodeId, Option<Answer>) {
        timeout(PATIENCE, self.answers.recv()).await.expect("an answer in time").expect("teller")
    }

    pub(crate) fn peers(&self) -> Vec<Peer> {
        let peer = |(&node, worker): (&NodeId, &Worker)| {
            let address = SocketAddr::new(worker.link.address().ip(), worker.info.data_port);
            Peer { node, addresses: vec![address.to_string()] }
        };
        self.workers.iter().map(peer).collect()
    }

    /// Loads the plan on its nodes; what each fetched and holds.
    pub(crate) async fn load(
        &mut self,
        plan: &Plan,
    ) -> BTreeMap<NodeId, (Bytes, shoal_core::message::Resident)> {
        self.order_load(plan).await;
        let mut loaded = BTreeMap::new();
        while loaded.len() < plan.nodes().len() {
            match self.next().await {
                (node, Some(Answer::Loaded { epoch, resident, fetched })) if epoch == plan.epoch => {
                    loaded.insert(node, (fetched, resident));
                }
                (_, Some(Answer::Progress { .. } | Answer::Idle { .. })) => {}
                other => panic!("not loaded: {other:?}"),
            }
        }
        loaded
    }

    pub(crate) async fn order_load(&mut self, plan: &Plan) {
        let order = Order::Load {
            model: model_ref(),
            spec: Box::new(spec()),
            plan: Box::new(plan.parts().clone()),
            peers: self.peers(),
        };
        for &node in plan.nodes() {
            self.send(node, &order).await;
        }
    }
}

async fn forward(
    node: NodeId,
    mut receiver: ControlReceiver<Answer>,
    teller: UnboundedSender<(NodeId, Option<Answer>)>,
) {
    loop {
        let answer = receiver.recv().await.ok();
        let end = answer.is_none();
        if teller.send((node, answer)).is_err() || end {
            return;
        }
    }
}
