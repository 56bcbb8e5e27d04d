//! Programs, maps and kernel helpers: everything in this crate that needs `unsafe`.

#[cfg(feature = "array-flows")]
mod flows_array;
#[cfg(not(feature = "array-flows"))]
mod flows_lru;
mod frames;
mod maps;
mod neighbours;
mod sock;
mod tc;
mod words;
#[cfg(feature = "wrapper")]
mod wrapper;
mod xdp;
