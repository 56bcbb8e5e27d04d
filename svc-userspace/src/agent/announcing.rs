//! What this node answers for on its networks, brought into the map and said aloud.

use std::sync::Arc;

use svc_common::Scope;

use super::engine::Engine;
use crate::{
    balancer::{announce::Announcer, pools::Pools, voice::Voice},
    kernel::{Dataplane, InterfaceSpec, LinkLayer},
};

/// The announcer, and what it takes to be heard.
#[derive(Debug)]
pub(super) struct Announcing {
    pub(super) announcer: Announcer,
    voice: Voice,
    /// The map could not be written.
    failed: bool,
}

impl Announcing {
    pub(super) fn new(node: Arc<str>, pools: Pools) -> Self {
        Self { announcer: Announcer::new(node, pools), voice: Voice::default(), failed: false }
    }

    /// An interface is there, or has changed.
    pub(super) fn link(&mut self, spec: &InterfaceSpec) {
        let is_uplink = spec.entry.scope == Scope::Outside as u8 && spec.link == LinkLayer::Ethernet;
        let link = spec.mac.filter(|_| is_uplink).map(|mac| (spec.name.clone(), mac));
        self.announcer.set_link(spec.index, link);
    }

    /// Follows what has been programmed. Nothing changes before everything has been programmed once: what an earlier agent
    /// answered for is answered for meanwhile.
    pub(super) fn follow(&mut self, engine: &mut Engine<Dataplane>, again: bool) {
        for name in engine.take_programmed() {
            let world = engine.world();
            self.announcer.set_service(&name, world.service(&name), world.slices_of(&name));
        }
        if !engine.is_synced() {
            return;
        }
        if let Some(announced) = self.announcer.take() {
            // Said after it can be answered for.
            match engine.maps().set_announced(&announced) {
                Ok(()) => {
                    self.failed = false;
                    self.voice.set(&announced);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failed, true) {
                        tracing::error!("cannot write what is announced: {:#}", anyhow::Error::from(error));
                    }
                    self.announcer.again();
                }
            }
        } else if again {
            self.voice.speak();
        }
    }
}
