//! The packet path.
#![no_std]
