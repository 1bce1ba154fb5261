//! The random number of a draw, as a function of where the draw is.

use rand::SeedableRng;
use rand::rand_core::Rng;
use rand_chacha::ChaCha8Rng;

/// Words of one block of the generator: each position has a block of its own.
const BLOCK_WORDS: u128 = 16;

/// A number in [0, 1) for the token at `position` of answer `choice` under `seed`: the first 53 bits
/// of block `position` of stream `choice` of ChaCha8, its key the seed in little-endian and zeros.
pub fn uniform(seed: u64, choice: u64, position: u64) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(choice);
    rng.set_word_pos(u128::from(position) * BLOCK_WORDS);
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seed_choice_and_position_has_its_own_number() {
        let mut seen = Vec::new();
        for (seed, choice, position) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, u64::MAX >> 4)] {
            let u = uniform(seed, choice, position);
            assert!((0.0..1.0).contains(&u));
            assert_eq!(u, uniform(seed, choice, position));
            seen.push(u.to_bits());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn the_first_number_is_the_cipher_s() {
        // ChaCha8 with a zero key and nonce begins 3e 00 ef 2f 89 5f 40 d6.
        let word = u64::from_le_bytes([0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
        assert_eq!(uniform(0, 0, 0), (word >> 11) as f64 / (1_u64 << 53) as f64);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut counts = [0_u32; 10];
        for position in 0..10_000 {
            counts[(uniform(7, 0, position) * 10.0) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
