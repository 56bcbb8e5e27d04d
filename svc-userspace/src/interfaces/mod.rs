//! Interfaces of this node.
