//! Why a packet was not delivered: one source for counter index, metric label, CLI text and documentation.

/// Reason of a drop. Numbers are indices into DROPS; they are only ever appended.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The Service has no endpoint at all.
    NoEndpoint = 0,
    /// The Service has endpoints, its traffic policy allows none of them here.
    PolicyEmpty = 1,
    /// A frontend, slot or backend that must exist was not found: the maps contradict each other.
    Inconsistent = 2,
    /// The flow table did not take the entry.
    FlowTableFull = 3,
    /// The tuple towards the backend is taken by another flow, and no free port was found.
    TupleTaken = 4,
    /// The frame could not be written (the kernel refused to make it writable).
    NotWritable = 5,
    /// The client is outside of the load balancer's source ranges.
    SourceRange = 6,
    /// The address is a VIP, and no Service has the port.
    UnknownPort = 7,
    /// The address lies within the Service CIDR, and no Service owns it.
    UnownedAddress = 8,
    /// It would have been refused, but enough was refused just now.
    RefusalLimit = 9,
    /// A fragment came before the first one of its datagram, was held, and the first one did not come in time. Counted when
    /// the place is needed again.
    FragmentLost = 10,
    /// A fragment came before the first one of its datagram and could not be held: it is too long, or there are too many.
    /// It was not dropped but passed on as it was, and is lost if it belongs to a flow of a Service.
    FragmentNotHeld = 11,
}

impl Reason {
    /// Number of reasons: the size of DROPS.
    pub const COUNT: u32 = 12;

    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NoEndpoint,
        Self::PolicyEmpty,
        Self::Inconsistent,
        Self::FlowTableFull,
        Self::TupleTaken,
        Self::NotWritable,
        Self::SourceRange,
        Self::UnknownPort,
        Self::UnownedAddress,
        Self::RefusalLimit,
        Self::FragmentLost,
        Self::FragmentNotHeld,
    ];

    /// The reason of a number; of one that none has, [`Reason::Inconsistent`].
    #[inline(always)]
    pub fn from_u8(number: u8) -> Self {
        match number {
            0 => Self::NoEndpoint,
            1 => Self::PolicyEmpty,
            3 => Self::FlowTableFull,
            4 => Self::TupleTaken,
            5 => Self::NotWritable,
            6 => Self::SourceRange,
            7 => Self::UnknownPort,
            8 => Self::UnownedAddress,
            9 => Self::RefusalLimit,
            10 => Self::FragmentLost,
            11 => Self::FragmentNotHeld,
            _ => Self::Inconsistent,
        }
    }

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::PolicyEmpty => "policy_empty",
            Self::Inconsistent => "inconsistent",
            Self::FlowTableFull => "flow_table_full",
            Self::TupleTaken => "tuple_taken",
            Self::NotWritable => "not_writable",
            Self::SourceRange => "source_range",
            Self::UnknownPort => "unknown_port",
            Self::UnownedAddress => "unowned_address",
            Self::RefusalLimit => "refusal_limit",
            Self::FragmentLost => "fragment_lost",
            Self::FragmentNotHeld => "fragment_not_held",
        }
    }

    /// One sentence for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::NoEndpoint => "the Service has no endpoint; the sender was told",
            Self::PolicyEmpty => "the Service has endpoints, but its traffic policy allows none of them on this node",
            Self::Inconsistent => "the maps contradict each other; restart the agent to reprogram them",
            Self::FlowTableFull => "the flow table did not take a new flow; raise --flows",
            Self::TupleTaken => "another flow uses the same addresses and ports towards the backend",
            Self::NotWritable => "the kernel refused to make the packet writable",
            Self::SourceRange => "the client is outside of the load balancer's source ranges",
            Self::UnknownPort => "no Service has this port of the address; the sender was told",
            Self::UnownedAddress => "the address is in the Service CIDR, and no Service owns it",
            Self::RefusalLimit => "a refusal was due, but senders are told at a limited rate",
            Self::FragmentLost => {
                "fragments came before the first one of their datagram, which did not come within seconds"
            }
            Self::FragmentNotHeld => {
                "fragments came before the first one of their datagram, too long or too many to be held: passed on as they were"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_the_reason_it_is_the_index_of() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason as u8), index);
            assert_eq!(Reason::from_u8(reason as u8), reason);
        }
    }
}
