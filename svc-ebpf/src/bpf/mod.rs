//! Programs, maps and kernel helpers: everything in this crate that needs `unsafe`.

mod flows_lru;
mod frames;
mod maps;
mod sock;
mod tc;
