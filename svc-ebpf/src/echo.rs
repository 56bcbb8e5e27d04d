//! Echo requests to a VIP: this node answers, as a host of that address would.

use svc_common::Reason;

use crate::{
    Verdict,
    checksum::Change,
    frame::{Covered, Frame},
    ip::{Header, Ip},
    link::turn_round,
    tables::Tables,
};

const ICMP_CHECKSUM: usize = 2;

/// Answers the request whose IP header is given, if it goes to a VIP that `who` (`VIP_INSIDE`, `VIP_OUTSIDE`) may ask.
#[inline(always)]
pub fn answer<A: Ip, F: Frame, T: Tables<A>>(frame: &mut F, tables: &mut T, header: &Header<A>, who: u32) -> Verdict {
    if tables.vip(&header.destination) & who == 0 || !header.source.is_host() {
        return Verdict::Pass;
    }
    match write(frame, header) {
        Some(()) => Verdict::Answer,
        None => Verdict::Drop(Reason::NotWritable),
    }
}

#[inline(always)]
fn write<A: Ip, F: Frame>(frame: &mut F, header: &Header<A>) -> Option<()> {
    // Two addresses that change places leave every checksum as it is.
    frame.put(header.offset + A::SOURCE, &header.destination)?;
    frame.put(header.offset + A::DESTINATION, &header.source)?;
    A::renew_hops(frame, header.offset)?;
    let [_, code]: [u8; 2] = frame.get(header.payload)?;
    let [request, reply] = A::ECHO;
    let change = Change::none().replace(&[request, code], &[reply, code]);
    frame.fix_checksum(header.payload + ICMP_CHECKSUM, change, Covered::Payload, false)?;
    frame.put(header.payload, &[reply, code])?;
    turn_round(frame, header.offset)
}
