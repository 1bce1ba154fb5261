//! Products of weight matrices with activations, and the small vector operations between them.
//!
//! **Invariant**: a result is a function of its row of weights and its row of activations alone. Batch size, the row's
//! place in the batch, thread count and instruction set change no bit, because every variant computes the same
//! expression: exact integer sums, then plain IEEE multiplications and additions in one order, never fused.
//!
//! The expression for quantized weights: chunks of 32 weights alternate between two sets of 8 lanes; lane `l` of a chunk
//! has the exact integer sum of products `4 l` to `4 l + 3`, as a float times (weight scale x activation scale), added to
//! the lane. Minimums times activation sums add up in 16 lanes of their own, by group of 16 within each 256. Lanes are
//! added in a fixed tree, and the minimums' total is subtracted. For float weights: 16 lanes, lane `i mod 16`, same tree.
//!
//! Layout: [`Matrix`] views weights as the file has them; `blocks` and `floats` walk rows, panels and
//! batches; `portable`, `avx2` and `neon` multiply one panel; `vector` has norms, activation functions and attention's
//! dot products. Reading blocks is `quant`'s.

#![expect(unsafe_code, reason = "vector instructions, and outputs written by several threads")]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod blocks;
mod floats;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod vector;

use std::marker::PhantomData;

pub use matrix::Matrix;
use shoal_core::QuantType;
pub use vector::{
    add, add_scaled, add_scaled_f16, dot, dot_f16, exp_sum, max, rmsnorm, rmsnorm_in_place, rmsnorm_rows,
    scale, silu_mul, softmax,
};

use crate::pool::{Pool, split};
use crate::quant::{Activations, Panel};

/// Names the arithmetic above. Workers with the same string give equal bits; it changes when any result could.
#[must_use]
pub fn kernel_set_id() -> &'static str {
    "shoal-1"
}

/// One product of a call to [`matmuls`]: `y = w x`.
#[derive(Debug)]
pub struct Product<'a> {
    w: Matrix<'a>,
    y: *mut f32,
    len: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: as a `&mut [f32]`; threads write disjoint elements (see `matmuls_on`).
unsafe impl Sync for Product<'_> {}
// SAFETY: as a `&mut [f32]`.
unsafe impl Send for Product<'_> {}

impl<'a> Product<'a> {
    /// Will write `y`, `[activation rows, w.rows()]`.
    #[must_use]
    pub fn new(w: Matrix<'a>, y: &'a mut [f32]) -> Self {
        Self { w, y: y.as_mut_ptr(), len: y.len(), output: PhantomData }
    }
}

/// `y = w x`: `w` is `[n, k]`, `x` is `[b, k]`, `y` is `[b, n]`.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul(pool: &Pool, w: &Matrix<'_>, x: &Activations, y: &mut [f32]) {
    matmuls(pool, x, &[Product::new(*w, y)]);
}

/// Several products of the same activations, with one hand-over to the pool.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmuls(pool: &Pool, x: &Activations, products: &[Product<'_>]) {
    matmuls_on(Variant::best(), pool, x, products);
}

/// [`matmuls`] with a chosen variant, to compare variants.
///
/// # Panics
/// When the shapes do not agree or this processor lacks the variant.
pub fn matmuls_on(variant: Variant, pool: &Pool, x: &Activations, products: &[Product<'_>]) {
    assert!(variant.is_available(), "{variant:?} kernels are not available here");
    for product in products {
        let w = product.w;
        assert_eq!(w.cols(), x.cols(), "columns of weights and activations");
        assert_eq!(product.len, w.rows() * x.rows(), "outputs of {} x {}", x.rows(), w.rows());
        assert!(w.kind().block_len() == 1 || x.is_quantized(), "activations of whole blocks");
    }
    pool.run(|index| {
        for product in products {
            let rows = split(product.w.rows(), ROW_GRAIN, pool.threads(), index);
            if !rows.is_empty() && x.rows() > 0 {
                let job = Job { w: product.w, x, y: product.y, first: rows.start, end: rows.end };
                // SAFETY: the variant is available, shapes were checked above, and `split` gives each row of weights,
                // hence each element of `y`, to one worker.
                unsafe { job.run(variant) };
            }
        }
    });
}

/// Weight rows are dealt to threads in these units: the rows that are computed together.
const ROW_GRAIN: usize = 4;

/// A set of instructions that kernels are built for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Variant {
    /// Whatever the compiler makes of plain code for the target's baseline.
    Portable,
    /// x86-64 with AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AArch64.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AArch64 with the integer dot product instructions (Cortex-A76 and later).
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Variant {
    /// Every variant built in, slowest first.
    pub const ALL: &'static [Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "aarch64")]
        Self::NeonDotprod,
    ];

    /// Whether this processor has what it takes. The standard library caches the answer.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
        }
    }

    /// The fastest one available.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.iter().rev().copied().find(|variant| variant.is_available()).unwrap_or(Self::Portable)
    }
}

/// Rows `first..end` of a product.
#[derive(Clone, Copy)]
struct Job<'a> {
    w: Matrix<'a>,
    x: &'a Activations,
    /// `[x.rows, w.rows]`
    y: *mut f32,
    first: usize,
    end: usize,
}

impl Job<'_> {
    /// # Safety
    /// The variant is available; the shapes agree; nobody else touches columns `first..end` of `y`.
    unsafe fn run(self, variant: Variant) {
        // SAFETY: the caller's promise, which is each callee's.
        unsafe {
            match variant {
                Variant::Portable => portable::run(self),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx2 => avx2::run(self),
                #[cfg(target_arch = "aarch64")]
                Variant::Neon => neon::run(self),
                #[cfg(target_arch = "aarch64")]
                Variant::NeonDotprod => neon::run_dotprod(self),
            }
        }
    }

    /// Walks the rows with one instruction set. Inlined into functions compiled for that set.
    #[inline(always)]
    unsafe fn run_with<I: Isa>(self) {
        use crate::quant::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        // SAFETY: the caller's promise, which is each callee's.
        unsafe {
            match self.w.kind() {
                QuantType::F32 => floats::rows::<I, floats::F32>(self),
                QuantType::F16 => floats::rows::<I, floats::F16>(self),
                QuantType::BF16 => floats::rows::<I, floats::BF16>(self),
                QuantType::Q8_0 => I::blocks::<Q8_0>(self),
                QuantType::Q4_0 => I::blocks::<Q4_0>(self),
                QuantType::Q4_1 => I::blocks::<Q4_1>(self),
                QuantType::Q5_0 => I::blocks::<Q5_0>(self),
                QuantType::Q5_1 => I::blocks::<Q5_1>(self),
                QuantType::Q2_K => I::blocks::<Q2K>(self),
                QuantType::Q3_K => I::blocks::<Q3K>(self),
                QuantType::Q4_K => I::blocks::<Q4K>(self),
                QuantType::Q5_K => I::blocks::<Q5K>(self),
                QuantType::Q6_K => I::blocks::<Q6K>(self),
            }
        }
    }
}

/// Partial sums of one dot product.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

const LANES: usize = 16;

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    fn sum(mut self) -> f32 {
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                self.0[i] += self.0[i + width];
            }
        }
        self.0[0]
    }
}

/// A stretch of one quantized activation row, as long as the panel it meets.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    /// 32 per chunk
    q: &'a [i8],
    /// 1 per chunk
    scales: &'a [f32],
    /// 2 per chunk
    sums: &'a [f32],
}

/// What an instruction set provides.
trait Isa {
    /// Widens an f16, exactly.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn half(bits: u16) -> f32;

    /// Widens little-endian f16 numbers, exactly, as many as `out` holds.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn halves(bytes: &[u8], out: &mut [f32]);

    /// Adds the products of a panel's integer weights and `R` activation rows to `acc`, as the module's expression says.
    /// `FINE`: the two groups of a chunk have scales of their own.
    ///
    /// # Safety
    /// The processor has the instruction set; panel and stretches hold `chunks` chunks.
    unsafe fn dot<const R: usize, const FINE: bool>(
        panel: &Panel,
        chunks: usize,
        x: &[Stretch<'_>; R],
        acc: &mut [Lanes; R],
    );

    /// Adds a panel's minimums times the sums of a whole panel's worth of activations, group by group.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn add_mins(panel: &Panel, sums: &[f32; LANES], acc: &mut Lanes);

    /// [`blocks::rows`] compiled for this instruction set, a function of its own for each format.
    ///
    /// # Safety
    /// As [`Job::run`].
    unsafe fn blocks<F: crate::quant::Format>(job: Job<'_>);
}
