//! Masquerading by the programs: the ports they take, and the mark that asks for it.

/// First of the source ports that flows masqueraded by the programs get: the dynamic ports of RFC 6335 section 6, which the
/// agent reserves, so that no socket of the host is given one of them.
pub const FIRST_PORT: u16 = 49152;
/// Number of these ports: all that follow.
pub const PORTS: u32 = 0x1_0000 - FIRST_PORT as u32;

/// Bit of `skb->mark` between the two hooks: the programs masquerade this packet where it leaves. Another one than the mark
/// that nftables heeds, so that flows of both kinds may exist side by side.
pub const PROGRAM_MARK: u32 = 0x2000;

/// True for a port that the programs may give to a flow; *host order*.
#[inline(always)]
pub fn is_own_port(port: u16) -> bool {
    port >= FIRST_PORT
}

const _: () = assert!(PORTS.is_power_of_two());
