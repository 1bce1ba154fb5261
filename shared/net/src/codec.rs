//! Bytes of a control message: bincode 2, little-endian, variable integers.
//!
//! The only file that names bincode. A message is at most [`CONTROL_MESSAGE_BYTES`], and the whole of
//! the bytes: what is left over is an error, as is a length inside it that claims more than the limit.

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_core::limits::CONTROL_MESSAGE_BYTES;

/// Bytes that are no message of the wanted type, or a message that is too long.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("failed to encode a message")]
    Encode(#[source] bincode::error::EncodeError),
    #[error("failed to decode a message")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("the message has {0} bytes; the limit is {CONTROL_MESSAGE_BYTES}")]
    TooLong(usize),
    #[error("{0} bytes are left over after the message")]
    Trailing(usize),
}

/// The bytes of a message.
///
/// # Errors
/// When they would be more than the limit, or the type cannot be encoded.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, config()).map_err(CodecError::Encode)?;
    if bytes.len() > CONTROL_MESSAGE_BYTES { Err(CodecError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// The message that these bytes are, all of them.
///
/// # Errors
/// When they are not exactly one message of this type within the limit.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    if bytes.len() > CONTROL_MESSAGE_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let (message, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
    match bytes.len() - used {
        0 => Ok(message),
        rest => Err(CodecError::Trailing(rest)),
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_limit::<CONTROL_MESSAGE_BYTES>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_core::message::{Answer, Order};
    use shoal_core::{Epoch, NodeId};

    #[test]
    fn left_over_and_oversized_bytes_are_errors() {
        let order = Order::Report { epoch: Epoch::default() };
        let mut bytes = encode(&order).unwrap();
        assert_eq!(decode::<Order>(&bytes).unwrap(), order);
        bytes.push(0);
        assert!(matches!(decode::<Order>(&bytes), Err(CodecError::Trailing(1))));
        assert!(matches!(encode(&vec![7_u8; CONTROL_MESSAGE_BYTES]), Err(CodecError::TooLong(_))));
        assert!(matches!(
            decode::<Vec<u8>>(&vec![0; CONTROL_MESSAGE_BYTES + 1]),
            Err(CodecError::TooLong(_))
        ));
        // A vector that claims 2^60 elements.
        assert!(matches!(decode::<Vec<NodeId>>(&[253, 0, 0, 0, 0, 0, 0, 0, 16]), Err(CodecError::Decode(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), tag in 0..12_u8) {
            let _ = decode::<Order>(&bytes);
            let _ = decode::<Answer>(&bytes);
            let mut tagged = vec![tag];
            tagged.extend(bytes);
            if let Ok(order) = decode::<Order>(&tagged) {
                prop_assert!(encode(&order).is_ok());
            }
            if let Ok(answer) = decode::<Answer>(&tagged) {
                prop_assert!(encode(&answer).is_ok());
            }
        }
    }
}
