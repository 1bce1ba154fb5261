//! Model chunks: a worker asks, the coordinator answers, on streams of their control connection.
//!
//! One bidirectional stream a request, opened by the worker. Request: length (u32, little-endian) and
//! bytes of [`crate::codec`]. Answer: a byte 0 and the content, or a byte 1 and a text that says why not,
//! then the end of the stream. Content of a hash list: 32 bytes a chunk, in order. Content of a range of chunks:
//! for each, length (u32, little-endian) and bytes. At most [`crate::control::CHUNK_STREAMS`] requests at a time.
//!
//! What arrives is not checked here: [`verify`] and [`verify_list`] are for whoever keeps it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use shoal_core::NodeId;
use shoal_core::message::Hash;

use crate::codec::{self, CodecError};
use crate::control::Link;
use crate::quic;

/// Largest chunk.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Chunks of one request: 64 MiB or 1 GiB, after which the worker asks again (and a stop is noticed).
pub const REQUEST_CHUNKS: u32 = 1024;

/// Chunks of a model: a file of 1 TiB in chunks of 1 MiB; its hash list has 32 MiB.
pub const MODEL_CHUNKS: u32 = 1 << 20;

/// A request has under 50 bytes.
const REQUEST_BYTES: usize = 256;

/// A refusal's text.
const REASON_BYTES: usize = 512;

/// What a server of chunks has. Calls may block: they are made on threads for that.
pub trait ChunkSource: Send + Sync + 'static {
    /// The BLAKE3 of each chunk of this model, in order.
    ///
    /// # Errors
    /// `NotFound` when it has no such model; the text goes to the peer.
    fn hashes(&self, model: &Hash) -> io::Result<Vec<Hash>>;

    /// One chunk.
    ///
    /// # Errors
    /// When there is no such model or chunk, or it cannot be read; the text goes to the peer.
    fn chunk(&self, model: &Hash, index: u32) -> io::Result<Vec<u8>>;
}

/// Why chunks could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("failed to ask {node} for chunks")]
    Ask {
        node: NodeId,
        #[source]
        source: CodecError,
    },
    #[error("{node} has no such chunks: {reason}")]
    Refused { node: NodeId, reason: String },
    #[error("the connection with {node} ended before all chunks came: {reason}")]
    Lost { node: NodeId, reason: String },
    #[error("{node} sent a chunk of {bytes} bytes; the limit is {limit}")]
    TooLong { node: NodeId, bytes: u64, limit: u64 },
    #[error("failed to keep a chunk")]
    Keep(#[source] io::Error),
    #[error("a request covers 1 to {REQUEST_CHUNKS} chunks below {MODEL_CHUNKS}, not {0:?}")]
    Range(Range<u32>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Hashes { model: Hash },
    Chunks { model: Hash, first: u32, count: u32 },
}

/// Whether these bytes have this BLAKE3.
pub fn verify(bytes: &[u8], hash: &Hash) -> bool {
    blake3::hash(bytes) == *hash
}

/// Whether this list of chunk hashes has this BLAKE3, as a manifest names it.
pub fn verify_list(hashes: &[Hash], hash: &Hash) -> bool {
    blake3::hash(hashes.as_flattened()) == *hash
}

/// Fetches the list of chunk hashes of a model that has `chunks` chunks.
///
/// # Errors
/// When the peer has no such model, its list has another length, or the connection ends.
pub async fn fetch_hashes(link: &Link, model: Hash, chunks: u32) -> Result<Vec<Hash>, ChunkError> {
    if !(1..=MODEL_CHUNKS).contains(&chunks) {
        return Err(ChunkError::Range(0..chunks));
    }
    let node = link.node();
    let mut stream = ask(link, &Request::Hashes { model }).await?;
    let lost = |error: &dyn std::error::Error| ChunkError::Lost { node, reason: quic::chain(error) };
    let mut hashes = Vec::new();
    for _ in 0..chunks {
        let mut hash = [0; 32];
        stream.read_exact(&mut hash).await.map_err(|error| lost(&error))?;
        hashes.push(hash);
    }
    match stream.read_chunk(1, true).await {
        Ok(None) => Ok(hashes),
        Ok(Some(_)) => {
            let limit = u64::from(chunks) * 32;
            Err(ChunkError::TooLong { node, bytes: limit + 1, limit })
        }
        Err(error) => Err(lost(&error)),
    }
}

/// Fetches a range of chunks of at most `chunk_bytes` each, and hands over each as it comes.
///
/// # Errors
/// When the peer refuses, a chunk is too long, the connection ends, or `keep` fails; what was handed
/// over before stays valid.
pub async fn fetch(
    link: &Link,
    model: Hash,
    range: Range<u32>,
    chunk_bytes: u32,
    mut keep: impl FnMut(u32, Vec<u8>) -> io::Result<()>,
) -> Result<(), ChunkError> {
    let count = range.end.saturating_sub(range.start);
    if !(1..=REQUEST_CHUNKS).contains(&count) || range.end > MODEL_CHUNKS {
        return Err(ChunkError::Range(range));
    }
    let node = link.node();
    let limit = CHUNK_BYTES.min(chunk_bytes as usize);
    let mut stream = ask(link, &Request::Chunks { model, first: range.start, count }).await?;
    let lost = |error: &dyn std::error::Error| ChunkError::Lost { node, reason: quic::chain(error) };
    for index in range {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.map_err(|error| lost(&error))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > limit {
            return Err(ChunkError::TooLong { node, bytes: length as u64, limit: limit as u64 });
        }
        let mut chunk = vec![0; length];
        stream.read_exact(&mut chunk).await.map_err(|error| lost(&error))?;
        keep(index, chunk).map_err(ChunkError::Keep)?;
    }
    Ok(())
}

/// Serves the peer's requests until the connection ends: to be spawned beside the driver of the connection.
pub async fn serve(link: Link, source: Arc<dyn ChunkSource>) {
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let (source, node) = (source.clone(), link.node());
        tokio::spawn(async move {
            if let Err(reason) = answer(send, recv, source).await {
                tracing::debug!(%node, "a request for chunks ended early: {reason}");
            }
        });
    }
}

async fn ask(link: &Link, request: &Request) -> Result<RecvStream, ChunkError> {
    let node = link.node();
    let lost = |error: &dyn std::error::Error| ChunkError::Lost { node, reason: quic::chain(error) };
    let body = codec::encode(request).map_err(|source| ChunkError::Ask { node, source })?;
    let (mut send, mut recv) = link.connection.open_bi().await.map_err(|error| lost(&error))?;
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    send.write_all(&bytes).await.map_err(|error| lost(&error))?;
    send.finish().map_err(|error| lost(&error))?;
    let mut status = [0];
    recv.read_exact(&mut status).await.map_err(|error| lost(&error))?;
    if status == [0] {
        return Ok(recv);
    }
    let reason = recv.read_to_end(REASON_BYTES).await.unwrap_or_default();
    let reason = String::from_utf8_lossy(&reason).escape_debug().to_string();
    Err(ChunkError::Refused { node, reason })
}

async fn answer(
    mut send: SendStream,
    mut recv: RecvStream,
    source: Arc<dyn ChunkSource>,
) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| quic::chain(error);
    let request = recv.read_to_end(REQUEST_BYTES).await.map_err(|error| text(&error))?;
    let body = request
        .split_first_chunk::<4>()
        .filter(|(length, body)| u32::from_le_bytes(**length) as usize == body.len());
    let (_, body) = body.ok_or("its length does not fit")?;
    match codec::decode(body).map_err(|error| text(&error))? {
        Request::Hashes { model } => match blocking(move || source.hashes(&model)).await {
            Ok(hashes) => {
                send.write_all(&[0]).await.map_err(|error| text(&error))?;
                send.write_all(hashes.as_flattened()).await.map_err(|error| text(&error))?;
            }
            Err(error) => refuse(&mut send, &error).await?,
        },
        Request::Chunks { first, count, .. }
            if count == 0 || count > REQUEST_CHUNKS || first >= MODEL_CHUNKS =>
        {
            let error = io::Error::other(ChunkError::Range(first..first.saturating_add(count)));
            refuse(&mut send, &error).await?;
        }
        Request::Chunks { model, first, count } => {
            for index in first..first + count {
                let source = source.clone();
                let chunk = match blocking(move || source.chunk(&model, index)).await {
                    Ok(chunk) if chunk.len() <= CHUNK_BYTES => chunk,
                    Ok(_) => return Err("the source gave a chunk over the limit".to_owned()),
                    // After the first chunk the status is out: the early end tells the worker.
                    Err(error) if index == first => return refuse(&mut send, &error).await,
                    Err(error) => return Err(text(&error)),
                };
                if index == first {
                    send.write_all(&[0]).await.map_err(|error| text(&error))?;
                }
                let length = (chunk.len() as u32).to_le_bytes();
                send.write_all(&length).await.map_err(|error| text(&error))?;
                send.write_all(&chunk).await.map_err(|error| text(&error))?;
            }
        }
    }
    send.finish().map_err(|error| text(&error))
}

async fn refuse(send: &mut SendStream, error: &io::Error) -> Result<(), String> {
    let mut bytes = vec![1];
    bytes.extend(error.to_string().bytes().take(REASON_BYTES));
    send.write_all(&bytes).await.map_err(|error| quic::chain(&error))?;
    send.finish().map_err(|error| quic::chain(&error))
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}
