//! What becomes of a packet.

use svc_common::Reason;

/// The outcome of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on, rewritten or not.
    Pass,
    /// The packet ends here.
    Drop(Reason),
}
