//! The honest opponent: packed counters, scanned with the widest registers that the processor has.
//!
//! Whether every counter has the value it should have is the same question for bytes, words and bits: do all 64-byte lines
//! equal one pattern?
#![allow(unsafe_code, reason = "vector intrinsics; each call is guarded by a look at what the processor has")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, __m512i, _mm256_loadu_si256, _mm256_or_si256, _mm256_setzero_si256, _mm256_testz_si256, _mm256_xor_si256,
    _mm512_loadu_si512, _mm512_or_si512, _mm512_setzero_si512, _mm512_test_epi64_mask, _mm512_xor_si512,
};

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line(pub [u64; 8]);

/// Lines between two looks at what was found: 4 KiB, so that one wrong counter ends the scan early.
const STRIDE: usize = 64;

/// What the scan runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 64 bytes at once.
    Avx512,
    /// 32 bytes at once.
    Avx2,
    /// 8 bytes at once, or what the compiler makes of it.
    Scalar,
}

impl Width {
    /// The widest that this processor has.
    #[must_use]
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Scalar => "scalar",
        }
    }

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_here(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
        }
    }

    /// Whether every line equals the pattern. A width that is not here scans scalar.
    #[must_use]
    #[inline]
    pub fn all_are(self, lines: &[Line], pattern: Line) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has AVX-512F, as just seen (the answer is cached in a word).
            Self::Avx512 if self.is_here() => unsafe { all_are_512(lines, pattern) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has AVX2, as just seen.
            Self::Avx2 if self.is_here() => unsafe { all_are_256(lines, pattern) },
            _ => all_are_scalar(lines, pattern),
        }
    }
}

fn all_are_scalar(lines: &[Line], pattern: Line) -> bool {
    let wrong = |line: &Line| line.0.iter().zip(pattern.0).fold(0, |wrong, (word, right)| wrong | (word ^ right));
    lines.chunks(STRIDE).all(|chunk| chunk.iter().fold(0, |all, line| all | wrong(line)) == 0)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn all_are_512(lines: &[Line], pattern: Line) -> bool {
    let load = |line: &Line| -> __m512i {
        // SAFETY: a `Line` is 64 readable bytes.
        unsafe { _mm512_loadu_si512(std::ptr::from_ref(line).cast()) }
    };
    let right = load(&pattern);
    lines.chunks(STRIDE).all(|chunk| {
        let mut wrong = [_mm512_setzero_si512(); 2];
        for (nth, line) in chunk.iter().enumerate() {
            wrong[nth % 2] = _mm512_or_si512(wrong[nth % 2], _mm512_xor_si512(load(line), right));
        }
        let wrong = _mm512_or_si512(wrong[0], wrong[1]);
        _mm512_test_epi64_mask(wrong, wrong) == 0
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn all_are_256(lines: &[Line], pattern: Line) -> bool {
    let load = |line: &Line, half: usize| -> __m256i {
        // SAFETY: a `Line` is 64 readable bytes, so both halves of it are 32.
        unsafe { _mm256_loadu_si256(std::ptr::from_ref(line).cast::<__m256i>().add(half)) }
    };
    let right = [load(&pattern, 0), load(&pattern, 1)];
    lines.chunks(STRIDE).all(|chunk| {
        let mut wrong = [_mm256_setzero_si256(); 2];
        for line in chunk {
            for half in 0..2 {
                wrong[half] = _mm256_or_si256(wrong[half], _mm256_xor_si256(load(line, half), right[half]));
            }
        }
        let wrong = _mm256_or_si256(wrong[0], wrong[1]);
        _mm256_testz_si256(wrong, wrong) == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_sees_one_wrong_bit_anywhere() {
        let pattern = Line([0x0101_0101_0101_0101; 8]);
        for width in [Width::Avx512, Width::Avx2, Width::Scalar] {
            let mut lines = vec![pattern; 130];
            assert!(width.all_are(&lines, pattern) && width.all_are(&[], pattern), "{width:?}");
            for (line, word, bit) in [(0, 0, 0), (63, 7, 63), (64, 3, 8), (129, 4, 40)] {
                lines[line].0[word] ^= 1 << bit;
                assert!(!width.all_are(&lines, pattern), "{width:?}: line {line}, word {word}, bit {bit}");
                lines[line].0[word] ^= 1 << bit;
            }
        }
    }
}
