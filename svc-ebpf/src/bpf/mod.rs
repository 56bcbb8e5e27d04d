//! Programs, maps and kernel helpers: everything in this crate that needs `unsafe`.

mod frames;
mod maps;
mod sock;
mod tc;
