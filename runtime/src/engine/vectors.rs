//! Loops with vectors as wide as the processor has that runs them.

/// Does the work with vectors as wide as the processor has.
///
/// What it reads and writes is named with its type and handed over as a function's arguments are: on x86-64 the work is
/// compiled once for each width, with all in it that is inlined. A closure would be one function of the least width,
/// called from all of them, as soon as it is not small.
macro_rules! wide {
    (|$($name:ident: $of:ty),+ $(,)?| -> $made:ty $work:block) => {{
        #[inline(always)]
        fn work($($name: $of),+) -> $made {
            $work
        }

        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            fn avx512($($name: $of),+) -> $made {
                work($($name),+)
            }

            #[target_feature(enable = "avx2,fma")]
            fn avx2($($name: $of),+) -> $made {
                work($($name),+)
            }

            #[allow(unsafe_code)]
            match $crate::engine::vectors::width() {
                // SAFETY: the processor has what the function is compiled for.
                $crate::engine::vectors::Width::Avx512 => unsafe { avx512($($name),+) },
                // SAFETY: as above.
                $crate::engine::vectors::Width::Avx2 => unsafe { avx2($($name),+) },
                $crate::engine::vectors::Width::Least => work($($name),+),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        work($($name),+)
    }};
}

pub(crate) use wide;

/// The vectors of an x86-64 processor.
#[cfg(target_arch = "x86_64")]
pub(crate) enum Width {
    Avx512,
    Avx2,
    Least,
}

/// Those of the processor that runs.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn width() -> Width {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Width::Avx512,
        (true, false) => Width::Avx2,
        _ => Width::Least,
    }
}
