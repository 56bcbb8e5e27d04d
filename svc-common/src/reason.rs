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
}

impl Reason {
    /// Number of reasons: the size of DROPS.
    pub const COUNT: u32 = 6;

    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NoEndpoint,
        Self::PolicyEmpty,
        Self::Inconsistent,
        Self::FlowTableFull,
        Self::TupleTaken,
        Self::NotWritable,
    ];

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::PolicyEmpty => "policy_empty",
            Self::Inconsistent => "inconsistent",
            Self::FlowTableFull => "flow_table_full",
            Self::TupleTaken => "tuple_taken",
            Self::NotWritable => "not_writable",
        }
    }

    /// One sentence for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::NoEndpoint => "the Service has no endpoint",
            Self::PolicyEmpty => "the Service has endpoints, but its traffic policy allows none of them on this node",
            Self::Inconsistent => "the maps contradict each other; restart the agent to reprogram them",
            Self::FlowTableFull => "the flow table did not take a new flow; raise --flows",
            Self::TupleTaken => "another flow uses the same addresses and ports towards the backend",
            Self::NotWritable => "the kernel refused to make the packet writable",
        }
    }
}
