//! Chance, by seed: how much longer than planned a piece of work or a message takes.

use rand::SeedableRng;
use rand::rand_core::Rng;
use rand_chacha::ChaCha8Rng;

/// Factors of a log-normal distribution with mean 1: never negative, with a tail to the slow side, as times
/// of kernels and networks have.
#[derive(Debug)]
pub(super) struct Jitter {
    rng: ChaCha8Rng,
    /// Of the logarithm; zero for none.
    sigma: f64,
}

impl Jitter {
    /// `fraction` is the standard deviation as a fraction of the mean.
    pub(super) fn new(seed: u64, fraction: f64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), sigma: libm::sqrt(libm::log1p(fraction * fraction)) }
    }

    /// Whether every factor is 1.
    pub(super) fn is_none(&self) -> bool {
        self.sigma == 0.0
    }

    /// The next factor.
    pub(super) fn factor(&mut self) -> f64 {
        if self.is_none() {
            return 1.0;
        }
        // Box and Muller; 1 − u keeps the logarithm's argument above zero.
        let (u, v) = (self.uniform(), self.uniform());
        let normal = libm::sqrt(-2.0 * libm::log(1.0 - u)) * libm::cos(std::f64::consts::TAU * v);
        libm::exp(self.sigma * normal - self.sigma * self.sigma / 2.0)
    }

    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_have_mean_one_and_the_spread_asked_for() {
        let mut jitter = Jitter::new(3, 0.2);
        let factors: Vec<f64> = (0..20_000).map(|_| jitter.factor()).collect();
        let mean = factors.iter().sum::<f64>() / factors.len() as f64;
        let variance = factors.iter().map(|f| (f - mean) * (f - mean)).sum::<f64>() / factors.len() as f64;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert!((variance.sqrt() - 0.2).abs() < 0.01, "{}", variance.sqrt());
        assert!(factors.iter().all(|&factor| factor > 0.0));
    }

    #[test]
    fn no_jitter_draws_nothing() {
        let mut jitter = Jitter::new(3, 0.0);
        assert!(jitter.is_none());
        assert_eq!(jitter.factor(), 1.0);
    }
}
