//! The benchmark's programs: a wrapper that makes a packet and tail-calls the program to be measured, and floor programs
//! that do one thing each. An object of its own (`cargo xtask bench`); nothing of it is in what is shipped.
//!
//! BPF_PROG_TEST_RUN does not restore the packet between repeats: a program that rewrites would see its own output from
//! the second one on, and never a second new flow. The wrapper knows nothing of the program's maps, but for the limit of
//! refusals, which it can take back.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod floor;
#[cfg(target_arch = "bpf")]
mod wrapper;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("error: this program is built for the kernel: cargo xtask bench");
    std::process::exit(2);
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: a reachable panic would leave a path without an exit, which the verifier refuses.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
