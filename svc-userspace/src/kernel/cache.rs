//! The flow cache of the XDP program: how large it is, and since when what is in it holds.
//!
//! It is pinned nowhere: it lasts as long as the programs, and those of the next agent begin with an empty one. A program of the
//! kernel's own tracepoint counts updates of neighbours for it, whether an agent runs or not.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::Program,
};
use svc_common::CacheState;

use super::{
    error::{KernelError, chain},
    links,
    pins::Layout,
    sys,
};

/// Places of CACHE_V4 and CACHE_V6, two for each flow that is to be known at a time: 23 and 18 MB.
const PLACES: [(&str, u32); 2] = [("CACHE_V4", 1 << 18), ("CACHE_V6", 1 << 17)];
const STATE: &str = "CACHE_STATE";

/// Sizes of the maps, where there is a program that uses them.
pub(super) fn sizes() -> [(&'static str, u32); 2] {
    PLACES
}

/// The program that counts updates of neighbours, and its tracepoint.
const PROGRAM: &str = "svc_neighbour";
const TRACEPOINT: &std::ffi::CStr = c"neigh_update_done";
const LINK: &str = "neighbours";

/// Has updates of neighbours counted by the object's program, and no longer by that of an earlier agent.
pub(super) fn count_neighbours(object: &mut Ebpf, layout: &Layout) -> Result<(), String> {
    let Some(Program::RawTracePoint(program)) = object.program_mut(PROGRAM) else {
        return Err(format!("the object has no program {PROGRAM}"));
    };
    program.load().map_err(|error| chain(&error))?;
    let program = program.fd().map_err(|error| chain(&error))?;
    let link: OwnedFd = links::create_raw_tracepoint(program.as_fd(), TRACEPOINT).map_err(|error| error.to_string())?;
    // Such a link cannot be given another program: the next one takes its name.
    let new = layout.link(&format!("{LINK}_new"));
    super::attach::remove_pin(&new).map_err(|error| chain(&error))?;
    sys::object_pin(link.as_fd(), &new).map_err(|error| error.to_string())?;
    fs::rename(&new, layout.link(LINK)).map_err(|error| error.to_string())
}

/// Ends that.
pub(super) fn forget_neighbours(layout: &Layout) -> Result<(), KernelError> {
    super::attach::remove_pin(&layout.link(LINK)).map(drop)
}

/// The cache of the programs that were loaded.
#[derive(Clone)]
pub struct FlowCache {
    state: Arc<Mutex<State>>,
}

struct State {
    map: Array<MapData, CacheState>,
    /// What is written next.
    generation: u32,
    is_on: bool,
}

impl FlowCache {
    /// The cache of an object that was loaded with [`sizes`]; it is off.
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, KernelError> {
        let map = object.take_map(STATE).ok_or_else(|| KernelError::Object(format!("it has no map {STATE}")))?;
        let map = Array::try_from(map).map_err(|error| KernelError::map(STATE, error))?;
        Ok(Self { state: Arc::new(Mutex::new(State { map, generation: 0, is_on: false })) })
    }

    /// Lets the programs use it from now on. Whoever calls it says from then on when something has changed.
    pub fn turn_on(&self) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.is_on = true;
        state.write()
    }

    /// Has every packet go the long way from now on.
    pub fn turn_off(&self) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.is_on = false;
        state.write()
    }

    /// Something has changed that what is known of flows depends on: none of it holds any more.
    pub fn changed(&self) -> Result<(), KernelError> {
        let mut state = self.lock();
        if state.is_on { state.write() } else { Ok(()) }
    }

    /// Turns it off until [`FlowCache::resume`], which is told what this returns: programs are replaced, and some that open flows
    /// would know nothing of it.
    pub(super) fn suspend(&self) -> Result<bool, KernelError> {
        let mut state = self.lock();
        let was_on = std::mem::replace(&mut state.is_on, false);
        state.write().map(|()| was_on)
    }

    /// Ends that.
    pub(super) fn resume(&self, was_on: bool) -> Result<(), KernelError> {
        if was_on { self.turn_on() } else { Ok(()) }
    }

    /// From now on, this is the cache of other programs, whose own nobody else has.
    pub(super) fn move_to(&self, other: Self) {
        if let Some(other) = Arc::into_inner(other.state) {
            self.lock().map = other.into_inner().unwrap_or_else(PoisonError::into_inner).map;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A thread that panicked has at most left a generation out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for FlowCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowCache").field("is_on", &self.lock().is_on).finish_non_exhaustive()
    }
}

impl State {
    fn write(&mut self) -> Result<(), KernelError> {
        let [v4, v6] = PLACES.map(|(_, places)| places - 1);
        let mut state = CacheState { generation: 0, mask_v4: v4, mask_v6: v6, pad: 0 };
        if self.is_on {
            // Never 0 again. An entry holds for a second, so that 2^32 changes ago is no matter.
            self.generation = self.generation.checked_add(1).unwrap_or(1);
            state.generation = self.generation;
        }
        self.map.set(0, state, 0).map_err(|error| KernelError::map(STATE, error))
    }
}
