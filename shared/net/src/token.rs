//! Join tokens: the text a person carries from the coordinator to a new worker, and the store in
//! which the coordinator judges them.
//!
//! A token is `shoal1-` and, in base32 without padding (case does not matter): 32 bytes SHA-256 of the
//! authority's key, 20 bytes secret, 4 bytes checksum (SHA-256 of what precedes). The digit is the
//! version. The store keeps the SHA-256 of secrets only; time is an argument.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::codec::{self, CodecError};
use crate::files::{self, FileError};
use crate::trust::{AuthorityId, PublicKey};

/// How long a token can be used unless told otherwise: time enough to walk to a board.
pub const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);

/// Uses of one token: a cluster has at most 500 workers.
pub const TOKEN_USES: u32 = 500;

/// Tokens kept at a time; beyond it the store refuses new ones until some expire.
pub const TOKENS_KEPT: usize = 256;

/// For how long an expired token is told apart from an unknown one.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

const SECRET_BYTES: usize = 20;
const CHECKSUM_BYTES: usize = 4;
const TOKEN_BYTES: usize = 32 + SECRET_BYTES + CHECKSUM_BYTES;
const PREFIX: &str = "shoal1-";

/// The secret of a token. Never printed but as part of the token's own text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A join token. Its text ([`JoinToken::reveal`]) is a secret; `Debug` shows the authority alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    authority: AuthorityId,
    secret: Secret,
}

impl JoinToken {
    /// The authority that the server must prove to be before it sees the secret.
    pub fn authority(&self) -> AuthorityId {
        self.authority
    }

    /// The text to hand to a worker: whoever has it can join.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.extend_from_slice(&self.authority.0);
        bytes.extend_from_slice(&self.secret.0);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// Why a text is no token. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenParseError {
    #[error("this is not a join token: a token starts with \"{PREFIX}\"")]
    NotAToken,
    #[error("this token is of another version; this program knows \"{PREFIX}\" only")]
    Version,
    #[error("the token is incomplete or too long: {found} characters instead of {wanted}")]
    Length { found: usize, wanted: usize },
    #[error("the token has a character that no token has, at place {0}")]
    Character(usize),
    #[error("the token has a typing error: its checksum does not fit")]
    Checksum,
}

impl FromStr for JoinToken {
    type Err = TokenParseError;

    fn from_str(text: &str) -> Result<Self, TokenParseError> {
        let text = text.trim().to_ascii_lowercase();
        let Some(body) = text.strip_prefix(PREFIX) else {
            let digits =
                text.strip_prefix("shoal").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
            let versioned = digits.is_some_and(|rest| rest.starts_with('-') && !text.starts_with("shoal-"));
            return Err(if versioned { TokenParseError::Version } else { TokenParseError::NotAToken });
        };
        let wanted = BASE32_NOPAD.encode_len(TOKEN_BYTES);
        if let Some(place) = body.chars().position(|c| !matches!(c, 'a'..='z' | '2'..='7')) {
            return Err(TokenParseError::Character(PREFIX.len() + place + 1));
        }
        if body.len() != wanted {
            let (found, wanted) = (PREFIX.len() + body.len(), PREFIX.len() + wanted);
            return Err(TokenParseError::Length { found, wanted });
        }
        let bytes = BASE32_NOPAD
            .decode(body.to_ascii_uppercase().as_bytes())
            .map_err(|_| TokenParseError::Checksum)?;
        let Some((signed, found)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(TokenParseError::Checksum);
        };
        let parts = (signed.first_chunk::<32>(), signed.last_chunk::<SECRET_BYTES>());
        match parts {
            (Some(authority), Some(secret)) if checksum(signed) == *found => {
                Ok(Self { authority: AuthorityId(*authority), secret: Secret(*secret) })
            }
            _ => Err(TokenParseError::Checksum),
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::digest(bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Why a token does not let a node in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TokenRefusal {
    #[error("unknown token")]
    Unknown,
    #[error("expired token")]
    Expired,
    #[error("used token")]
    Used,
}

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged; delete it and make new tokens", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: CodecError,
    },
    #[error("failed to encode the tokens")]
    Encode(#[source] CodecError),
    #[error("there are {TOKENS_KEPT} tokens that have not expired; wait for some to expire")]
    Full,
    #[error("a token has 1 to {TOKEN_USES} uses, not {0}")]
    Uses(u32),
    #[error("the system has no randomness to give")]
    Random,
}

/// Seconds since 1970, by the coordinator's clock, which alone judges tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// The system's time now.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.unwrap_or_default().as_secs())
    }

    /// This much later.
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_secs()))
    }
}

/// The coordinator's tokens, in its data folder.
///
/// Each call takes a lock on the store and reads it anew, so `shoal token` works beside a running
/// coordinator, and a use is spent on disk before the answer is given.
#[derive(Debug, Clone)]
pub struct TokenStore {
    dir: PathBuf,
}

impl TokenStore {
    /// The store in this folder; nothing is read or written yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Makes a token with this many uses that expires after `life`.
    ///
    /// # Errors
    /// When the uses are out of range, the store is full, or it cannot be kept.
    pub fn issue(
        &self,
        authority: AuthorityId,
        uses: u32,
        life: Duration,
        now: UnixSeconds,
    ) -> Result<JoinToken, TokenError> {
        if !(1..=TOKEN_USES).contains(&uses) {
            return Err(TokenError::Uses(uses));
        }
        let mut secret = [0; SECRET_BYTES];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut secret).map_err(|_| TokenError::Random)?;
        let token = JoinToken { authority, secret: Secret(secret) };
        let (_lock, mut kept) = self.open()?;
        kept.tokens.retain(|entry| entry.expires.after(REMEMBERED) > now);
        if kept.tokens.len() >= TOKENS_KEPT {
            kept.tokens.retain(|entry| entry.expires > now);
        }
        if kept.tokens.len() >= TOKENS_KEPT {
            return Err(TokenError::Full);
        }
        let hash = token.secret.hash();
        kept.tokens.push(Entry { hash, uses_left: uses, expires: now.after(life), admitted: Vec::new() });
        self.save(&kept)?;
        Ok(token)
    }

    /// Spends a use of the token with this secret for the node with this key. The same key may come
    /// again until the token expires, at no further use: its first answer may have been lost.
    ///
    /// # Errors
    /// When the store cannot be used. That the token is no good is the inner error.
    pub fn redeem(
        &self,
        secret: &Secret,
        key: PublicKey,
        now: UnixSeconds,
    ) -> Result<Result<(), TokenRefusal>, TokenError> {
        let (_lock, mut kept) = self.open()?;
        let hash = secret.hash();
        let Some(entry) = kept.tokens.iter_mut().find(|entry| entry.hash == hash) else {
            return Ok(Err(TokenRefusal::Unknown));
        };
        if entry.expires <= now {
            return Ok(Err(TokenRefusal::Expired));
        }
        if entry.admitted.contains(&key) {
            return Ok(Ok(()));
        }
        let Some(left) = entry.uses_left.checked_sub(1) else { return Ok(Err(TokenRefusal::Used)) };
        entry.uses_left = left;
        entry.admitted.push(key);
        self.save(&kept)?;
        Ok(Ok(()))
    }

    fn path(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    fn open(&self) -> Result<(Option<File>, Kept), TokenError> {
        files::ensure_dir(&self.dir)?;
        let lock = files::lock_file(&self.dir.join("tokens.lock"), true)?;
        let path = self.path();
        let kept = match files::read_private(&path, shoal_core::limits::CONTROL_MESSAGE_BYTES as u64)? {
            Some(bytes) => {
                codec::decode(&bytes).map_err(|source| TokenError::Damaged { path: path.clone(), source })?
            }
            None => Kept::default(),
        };
        Ok((lock, kept))
    }

    fn save(&self, kept: &Kept) -> Result<(), TokenError> {
        let bytes = codec::encode(kept).map_err(TokenError::Encode)?;
        Ok(files::write_private(&self.path(), &bytes)?)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    tokens: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    hash: [u8; 32],
    uses_left: u32,
    expires: UnixSeconds,
    admitted: Vec<PublicKey>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixSeconds = UnixSeconds(1_000_000);

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    #[test]
    fn a_token_is_spent_once_but_answers_a_retry() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::new(dir.path());
        let token = store.issue(AuthorityId([1; 32]), 2, TOKEN_LIFE, NOW).unwrap();
        // A store opened anew, as after a restart, knows what was spent.
        let redeem = |key, now| TokenStore::new(dir.path()).redeem(token.secret(), key, now).unwrap();
        assert_eq!(redeem(key(1), NOW), Ok(()));
        assert_eq!(redeem(key(1), NOW), Ok(()));
        assert_eq!(redeem(key(2), NOW), Ok(()));
        assert_eq!(redeem(key(3), NOW), Err(TokenRefusal::Used));
        assert_eq!(redeem(key(1), NOW.after(TOKEN_LIFE)), Err(TokenRefusal::Expired));
        let other = Secret([9; SECRET_BYTES]);
        assert_eq!(store.redeem(&other, key(1), NOW).unwrap(), Err(TokenRefusal::Unknown));
    }

    #[test]
    fn the_secret_is_neither_on_disk_nor_in_debug_output() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::new(dir.path());
        let token = store.issue(AuthorityId([1; 32]), 1, TOKEN_LIFE, NOW).unwrap();
        let kept = std::fs::read(dir.path().join("tokens")).unwrap();
        assert!(!kept.windows(8).any(|window| token.secret.0.windows(8).any(|part| part == window)));
        let debug = format!("{token:?} {:?} {store:?}", token.secret());
        assert!(!debug.contains(&format!("{:?}", token.secret.0)), "{debug}");
        assert!(!debug.contains(&token.reveal()[60..80]), "{debug}");
    }

    #[test]
    fn a_full_store_drops_what_expired_and_refuses_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::new(dir.path());
        let expires = NOW.after(TOKEN_LIFE);
        let entry = |at: usize| Entry { hash: [at as u8; 32], uses_left: 1, expires, admitted: vec![] };
        store.save(&Kept { tokens: (0..TOKENS_KEPT).map(entry).collect() }).unwrap();
        let issue = |now| store.issue(AuthorityId([1; 32]), 1, TOKEN_LIFE, now);
        assert!(matches!(issue(NOW), Err(TokenError::Full)));
        issue(expires).unwrap();
        assert!(matches!(store.issue(AuthorityId([1; 32]), 0, TOKEN_LIFE, NOW), Err(TokenError::Uses(0))));
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_text() {
        let text = JoinToken { authority: AuthorityId([1; 32]), secret: Secret([2; SECRET_BYTES]) }.reveal();
        assert_eq!(text.to_ascii_uppercase().parse::<JoinToken>().unwrap().reveal(), text);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap().reveal(), text);
        let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(parse(""), TokenParseError::NotAToken);
        assert_eq!(parse("hello"), TokenParseError::NotAToken);
        assert_eq!(parse(&text.replace("shoal1", "shoal2")), TokenParseError::Version);
        assert!(matches!(parse(&text[..40]), TokenParseError::Length { .. }));
        assert!(matches!(parse(&format!("{text}a")), TokenParseError::Length { .. }));
        assert_eq!(parse(&text.replacen(&text[10..11], "!", 1)), TokenParseError::Character(11));
    }

    proptest! {
        #[test]
        fn a_token_reads_back_and_one_wrong_character_is_noticed(
            authority: [u8; 32], secret: [u8; SECRET_BYTES], place in 0..88_usize, letter in "[a-z2-7]",
        ) {
            let token = JoinToken { authority: AuthorityId(authority), secret: Secret(secret) };
            let text = token.reveal();
            prop_assert_eq!(text.parse::<JoinToken>(), Ok(token));
            let mut typo = text.clone();
            let at = PREFIX.len() + place;
            typo.replace_range(at..=at, &letter);
            prop_assert_eq!(typo.parse::<JoinToken>().is_ok(), typo == text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,120}", tail in "[a-z2-7é]{0,100}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{tail}").parse::<JoinToken>();
        }
    }
}
