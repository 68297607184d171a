//! Sixteen f32 lanes, the same on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled once per instruction set by [`simd_fn`].
//! Every operation here rounds once, and reductions over lanes have one fixed tree, so that the
//! instruction set can never change a bit (the row law). On AVX2 a vector is two registers, in the
//! portable build an array.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// Lanes of a vector, on every instruction set.
pub(crate) const LANES: usize = 16;

/// Below this magnitude an f32 is subnormal.
pub(crate) const MIN_NORMAL: f32 = f32::MIN_POSITIVE;

/// The nearest bf16, ties to even; subnormals become zero, as the dot product takes them.
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        (bits >> 16) | 0x40
    } else if magnitude < 0x0080_0000 {
        (bits >> 16) & 0x8000
    } else {
        bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
    }
}

/// Sixteen f32 lanes.
///
/// # Safety
/// Every function requires the instruction set of the implementing type, which [`simd_fn`]
/// guarantees; loads and stores require the lanes they name to be valid memory.
pub(crate) trait Simd: Copy + 'static {
    type V: Copy;
    /// Rows and vectors of a matrix tile whose accumulators fit the registers.
    const TILE_ROWS: usize;
    const TILE_VECTORS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// Lanes `n..` read as zero; `n` may exceed [`LANES`].
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Lanes `n..` are not written; `n` may exceed [`LANES`].
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// a * b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lesser; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Lane by lane: `t` where a < b, else `f`.
    unsafe fn select_lt(a: Self::V, b: Self::V, t: Self::V, f: Self::V) -> Self::V;
    /// The nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// a * 2^n by adding to the exponent; `n` integral, the result a normal number.
    unsafe fn scale_by_power(a: Self::V, n: Self::V) -> Self::V;
    /// Lanes i and i + 8, then i and i + 4, i + 2, i + 1: one tree for every instruction set.
    unsafe fn sum(a: Self::V) -> f32;
    /// The greatest lane (NaN lanes may be passed over).
    unsafe fn greatest(a: Self::V) -> f32;

    /// Sixteen bf16, ties to even, subnormals to zero: [`bf16_bits`] of each lane.
    unsafe fn store_bf16(p: *mut u16, v: Self::V);

    /// Sixteen pairs of bf16, `even` in the low halves.
    unsafe fn store_bf16_pairs(p: *mut u32, even: Self::V, odd: Self::V);

    /// `acc + a.odd * b.odd`, then `+ a.even * b.even`, per 32-bit lane that holds two bf16
    /// (even in the low half), each step rounded once with subnormals flushed to zero: what
    /// `VDPBF16PS` computes. `a` is one pair for all lanes, `b` points to sixteen pairs.
    unsafe fn dot_bf16(acc: Self::V, a: *const u32, b: *const u32) -> Self::V;
}

/// e^x to within two units in the last place; 0 below -87.3, finite above 88, NaN of NaN.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller has the instruction set of S.
    unsafe {
        let low = S::splat(-87.3);
        let clamped = S::min(S::splat(88.0), S::max(low, x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts: the first has few bits, so that n * LN2_HIGH is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // Taylor to the seventh power: |r| <= ln 2 / 2 leaves 5e-9.
        let p = S::splat(1.984_127e-4);
        let p = S::fma(p, r, S::splat(1.388_888_9e-3));
        let p = S::fma(p, r, S::splat(8.333_334e-3));
        let p = S::fma(p, r, S::splat(4.166_666_8e-2));
        let p = S::fma(p, r, S::splat(1.666_666_7e-1));
        let p = S::fma(p, r, S::splat(0.5));
        let p = S::fma(p, r, S::splat(1.0));
        let p = S::fma(p, r, S::splat(1.0));
        S::select_lt(x, low, S::splat(0.0), S::scale_by_power(p, n))
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller has the instruction set of S.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// Plain Rust: the oracle.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

fn flush(x: f32) -> f32 {
    if x.abs() < MIN_NORMAL {
        0.0f32.copysign(x)
    } else {
        x
    }
}

impl Simd for Portable {
    type V = [f32; LANES];
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen floats.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        // SAFETY: only lanes below n are read.
        lanes(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen floats.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    unsafe fn store_first(p: *mut f32, n: usize, v: Self::V) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: only lanes below n are written.
            unsafe { *p.add(i) = x }
        }
    }
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    unsafe fn sqrt(a: Self::V) -> Self::V {
        lanes(|i| a[i].sqrt())
    }
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    unsafe fn select_lt(a: Self::V, b: Self::V, t: Self::V, f: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { t[i] } else { f[i] })
    }
    unsafe fn round(a: Self::V) -> Self::V {
        lanes(|i| a[i].round_ties_even())
    }
    unsafe fn scale_by_power(a: Self::V, n: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(a[i].to_bits().wrapping_add(((n[i] as i32) << 23) as u32)))
    }
    unsafe fn sum(a: Self::V) -> f32 {
        let mut v = a;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    unsafe fn greatest(a: Self::V) -> f32 {
        a.into_iter()
            .fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller vouches for sixteen values.
            unsafe { *p.add(i) = bf16_bits(x) as u16 }
        }
    }
    unsafe fn store_bf16_pairs(p: *mut u32, even: Self::V, odd: Self::V) {
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            // SAFETY: the caller vouches for sixteen pairs.
            unsafe { *p.add(i) = bf16_bits(even) | bf16_bits(odd) << 16 }
        }
    }
    unsafe fn dot_bf16(acc: Self::V, a: *const u32, b: *const u32) -> Self::V {
        // SAFETY: the caller vouches for one pair at a and sixteen at b.
        let (pair, b) = unsafe { (*a, b.cast::<[u32; LANES]>().read_unaligned()) };
        let even = |x: u32| flush(f32::from_bits(x << 16));
        let odd = |x: u32| flush(f32::from_bits(x & 0xffff_0000));
        lanes(|i| {
            let first = flush(odd(pair).mul_add(odd(b[i]), flush(acc[i])));
            flush(even(pair).mul_add(even(b[i]), first))
        })
    }
}

/// Defines a kernel once and compiles it for every instruction set; the first argument of the
/// function it makes is the [`Isa`](crate::Isa). Kernels without bf16 dot products need no
/// separate AVX-512-BF16 build.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            use $crate::stored::Widen;
            #[inline(always)]
            unsafe fn generic<$S: Widen>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: each caller below has the instruction set of the type it names.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::x86::{Avx2, Avx512};
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the attribute above.
                    unsafe { generic::<Avx2>($($arg),*) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the attribute above.
                    unsafe { generic::<Avx512>($($arg),*) }
                }
                // SAFETY: an Isa other than Portable exists only where the machine has it.
                match isa {
                    $crate::Isa::Portable => {}
                    $crate::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            // SAFETY: Portable needs no instruction set.
            unsafe { generic::<$crate::simd::Portable>($($arg),*) }
        }
    };
}
pub(crate) use simd_fn;

/// Runs `$body` for every vector of `0..$n`: `$c` is its first element, `$m` how many of its lanes
/// are elements. The body is compiled twice, so that full vectors become plain loads and stores and
/// the last one masked, while the arithmetic is one text. (A closure would lose the instruction
/// set.)
macro_rules! for_vectors {
    ($c:ident, $m:ident in $n:expr, $body:block) => {{
        let n: usize = $n;
        let mut $c = 0;
        while $c + $crate::simd::LANES <= n {
            let $m = $crate::simd::LANES;
            $body
            $c += $crate::simd::LANES;
        }
        if $c < n {
            let $m = n - $c;
            $body
        }
    }};
}
pub(crate) use for_vectors;

/// Sum of a[i] * b[i] in f32: vector v goes to accumulator v % 4, and the four are joined in one
/// tree, so that the result is a function of the n products alone.
///
/// # Safety
/// `n` floats must stand at both pointers, and the instruction set of S must be there.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: lanes at or beyond n are neither read nor dereferenced.
    unsafe {
        let mut acc = [S::splat(0.0); 4];
        let mut c = 0;
        while c + 4 * LANES <= n {
            for (k, acc) in acc.iter_mut().enumerate() {
                let at = c + k * LANES;
                *acc = S::fma(S::load(a.add(at)), S::load(b.add(at)), *acc);
            }
            c += 4 * LANES;
        }
        if c < n {
            for (k, acc) in acc.iter_mut().enumerate() {
                let at = c + k * LANES;
                let m = n.saturating_sub(at);
                let x = S::load_first(a.wrapping_add(at), m);
                *acc = S::fma(x, S::load_first(b.wrapping_add(at), m), *acc);
            }
        }
        S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])))
    }
}
