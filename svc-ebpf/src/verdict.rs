//! What becomes of a packet.

use svc_common::Reason;

/// The outcome of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on, rewritten or not.
    Pass,
    /// The packet ends here.
    Drop(Reason),
    /// The packet ends here, and the frame now is the error that tells its sender: it goes back the way it came.
    Refuse(Reason),
    /// The frame now is the answer: it goes back the way it came.
    Answer,
    /// The packet ends here, and a copy of it waits for the first fragment of its datagram.
    Held,
    /// The packet ends here, and has come in again with the fragments that were held.
    Again,
}
