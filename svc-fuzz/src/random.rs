//! Random bytes for tests that have no fuzzer to make them: the same in every run, or by the seed in `SVC_FUZZ_SEED`, and the
//! input of a failure kept. Looking for new ones is the fuzzer's business (`cargo xtask fuzz`).

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process,
};

/// Runs `target` on `cases` random inputs of up to `len` bytes. The input of a failure stays in a file, for
/// `examples/show.rs` and the regressions.
pub fn run(target: &str, cases: u32, len: usize, mut run: impl FnMut(&[u8])) {
    let seed = env::var("SVC_FUZZ_SEED").map_or(0, |seed| seed.parse().expect("SVC_FUZZ_SEED is a number"));
    let mut state = target.bytes().fold(seed, |state: u64, byte| state.rotate_left(8) ^ u64::from(byte));
    for case in 0..cases {
        let len = next(&mut state) as usize % len;
        let bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next(&mut state).to_le_bytes()).collect();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&bytes))) {
            let path = env::temp_dir().join(format!("svc-fuzz-{target}-{}", process::id()));
            match fs::write(&path, &bytes) {
                Ok(()) => eprintln!("the input of this failure of {target} is {}", path.display()),
                Err(error) => eprintln!("{}: {error}; the input was {bytes:02x?}", path.display()),
            }
            eprintln!("it was case {case} of SVC_FUZZ_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
