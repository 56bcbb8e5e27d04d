//! What a packet costs in the loaded programs, by BPF_PROG_TEST_RUN, beside programs that do one thing each.
//!
//! Every figure is CPU time of the measuring thread for each packet, less that of the wrapper with a program that does
//! nothing, measured in turn. Before a row is measured, one packet shows that the program does what the row says; while it
//! is measured, the Service's counter of connections shows that flows were opened, or that none was.

mod bed;
mod net;
mod rows;
mod world;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::Pod;
use svc_common::{Backend, Cidr, FrontendKey};
use svc_ebpf::bench::Plan;

use self::{
    bed::{Bed, Flows},
    rows::{FLOORS, FULL_ROWS, FULL_XDP_ROWS, Floor, NEW_ROWS, NEW_XDP_ROWS, Outcome, ROWS, Row as Measured, XDP_ROWS},
    world::{BALANCED, Family, Kind, Peer, Place, SINGLE, Traffic, ends},
};
use crate::{
    machine::{cpus, pin},
    report::{Cell, Row, Section},
    stats::{Sample, in_turn},
};

/// Packets in a batch.
#[derive(Clone, Copy)]
struct Sizes {
    batch: u32,
    /// Of new flows, which cost more and fill tables.
    new: u32,
}

const FULL: Sizes = Sizes { batch: 400_000, new: 1 << 15 };
const QUICK: Sizes = Sizes { batch: 50_000, new: 1 << 13 };
/// Flows that are sure to fill a flow table of the default size.
const FILL: u32 = 400_000;

/// Measures the programs, then the floor: rows whose name contains `name`.
pub fn run(object: &Path, own: &Path, quick: bool, name: &str) -> Result<Vec<Section>> {
    let cpu = *cpus()?.last().context("there is no CPU")?;
    // On a thread of its own: what comes after this section may use every CPU.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(cpu)?;
            let uplink = net::enter()?;
            let sizes = if quick { QUICK } else { FULL };
            let run = Run { object, own, sizes, name, uplink };
            let v4 = run.family::<[u8; 4]>().context("IPv4")?;
            let v6 = run.family::<[u8; 16]>().context("IPv6")?;
            Ok(sections(v4, v6))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The rows of a family, in order.
#[derive(Default)]
struct Figures {
    programs: Vec<(&'static str, Cell)>,
    floors: Vec<(&'static str, Cell)>,
}

fn sections(v4: Figures, v6: Figures) -> Vec<Section> {
    let columns = || vec!["IPv4".to_owned(), "IPv6".to_owned()];
    let rows = |v4: Vec<(&'static str, Cell)>, v6: Vec<(&'static str, Cell)>| {
        let cells = v4.into_iter().zip(v6);
        cells.map(|((name, v4), (_, v6))| Row { name: name.into(), cells: vec![Some(v4), Some(v6)] }).collect()
    };
    vec![
        Section {
            name: "kernel",
            title: "NS FOR EACH PACKET, the wrapper subtracted".into(),
            columns: columns(),
            rows: rows(v4.programs, v6.programs),
            notes: vec![
                "10,000 Services; 100 backends; established flows fill a quarter of the table at most.".into(),
                "Refusals include giving the packet its length back, a part of the floor's last row.".into(),
            ],
        },
        Section {
            name: "floor",
            title: "THE KERNEL'S OWN COSTS, ns, the wrapper subtracted (but for its own row)".into(),
            columns: columns(),
            rows: rows(v4.floors, v6.floors),
            notes: vec!["Keys and values as large as a flow's: 16 and 32 bytes for IPv4, 40 and 40 for IPv6.".into()],
        },
    ]
}

/// What is to be measured, and where.
struct Run<'a> {
    object: &'a Path,
    own: &'a Path,
    sizes: Sizes,
    /// Only rows whose name contains it.
    name: &'a str,
    uplink: u32,
}

impl Run<'_> {
    fn family<A: Family>(&self) -> Result<Figures>
    where
        FrontendKey<A>: Pod,
        Backend<A>: Pod,
        Cidr<A>: Pod,
    {
        let mut figures = Figures::default();
        self.place::<A>(Place::Inside, [ROWS, NEW_ROWS, FULL_ROWS], &mut figures)?;
        self.place::<A>(Place::Outside(self.uplink), [XDP_ROWS, NEW_XDP_ROWS, FULL_XDP_ROWS], &mut figures)?;
        Ok(figures)
    }

    /// Rows of one place: of tables little filled, of a flow table that never fills, and of one that is full. The floor is measured
    /// beside the first of them.
    fn place<A: Family>(
        &self,
        place: Place,
        [rows, new_rows, full_rows]: [&[Measured]; 3],
        figures: &mut Figures,
    ) -> Result<()>
    where
        FrontendKey<A>: Pod,
        Backend<A>: Pod,
        Cidr<A>: Pod,
    {
        let is_wanted = |row: &&Measured| row.name.contains(self.name);
        let mut bed = self.bed::<A>(Flows::Default, place)?;
        for row in rows.iter().filter(is_wanted) {
            figures.programs.push((row.name, measure::<A>(&mut bed, row, self.sizes).context(row.name)?));
        }
        if place == Place::Inside {
            for floor in FLOORS.iter().filter(|floor| floor.name.contains(self.name)) {
                figures.floors.push((floor.name, measure_floor::<A>(&mut bed, floor, self.sizes).context(floor.name)?));
            }
        }
        let mut full = Vec::new();
        for row in full_rows.iter().filter(is_wanted) {
            if full.is_empty() {
                let mut filling = new(Kind::Udp).plan::<A>()?;
                // Clients of their own.
                filling.next = 1 << 30;
                bed.run(&mut filling, row.program, FILL)?;
            }
            full.push((row.name, measure::<A>(&mut bed, row, self.sizes).context(row.name)?));
        }
        drop(bed);

        for row in new_rows.iter().filter(is_wanted) {
            let mut bed = self.bed::<A>(Flows::Roomy(A::SUFFIX), place)?;
            figures.programs.push((row.name, measure::<A>(&mut bed, row, self.sizes).context(row.name)?));
        }
        figures.programs.extend(full);
        Ok(())
    }

    fn bed<A: Family>(&self, flows: Flows, place: Place) -> Result<Bed>
    where
        FrontendKey<A>: Pod,
        Backend<A>: Pod,
        Cidr<A>: Pod,
    {
        let mut bed = Bed::load(self.object, self.own, flows)?;
        world::program::<A>(&mut bed, place)?;
        Ok(bed)
    }
}

fn new(kind: Kind) -> Traffic {
    Traffic { kind, peer: Peer::Balanced, flows: None, reply: false, unlimited: false }
}

fn measure<A: Family>(bed: &mut Bed, row: &Measured, sizes: Sizes) -> Result<Cell> {
    let mut plan = row.traffic.plan::<A>()?;
    if let Some(opening) = row.opened_by {
        let mut opening = opening.plan::<A>()?;
        if bed::is_xdp(row.program) {
            let (_, left) = bed.once(&mut opening.clone(), row.program)?;
            if row.traffic.reply {
                plan = world::answers::<A>(row.traffic, &left)?;
            }
            bed.run(&mut opening, row.program, row.traffic.flows.unwrap_or(1))?;
        } else {
            bed.run(&mut opening, "svc_ingress", row.traffic.flows.unwrap_or(1))?;
        }
    }
    if row.exhausted {
        // Beyond what is allowed in a span; the rest of the row never takes as long as to be allowed many again.
        bed.run(&mut plan, row.program, 1 << 12)?;
    }
    check::<A>(bed, row, &mut plan)?;

    let packets = if row.traffic.flows.is_none() { sizes.new } else { sizes.batch };
    bed.run(&mut plan, row.program, packets / 4)?;
    let services = [BALANCED, SINGLE];
    let opened = |bed: &mut Bed| services.iter().map(|&service| bed.opened(service)).sum::<Result<u64>>();
    let before = opened(bed)?;
    let ran = std::cell::Cell::new(0);
    let bed = std::cell::RefCell::new(bed);
    let mut base = Plan { next: 0, ..plan };
    let sample = in_turn(
        || {
            ran.set(ran.get() + u64::from(packets));
            bed.borrow_mut().run(&mut plan, row.program, packets)
        },
        || bed.borrow_mut().run(&mut base, bed::nothing(row.program), packets),
    )?;
    let opened = opened(*bed.borrow_mut())? - before;
    let expected = if row.traffic.flows.is_none() && row.outcome == Outcome::Forwarded { ran.get() } else { 0 };
    // An entry may be lost to another flow's, and a flow opened again: that is part of what is measured.
    ensure!(opened.abs_diff(expected) <= ran.get() / 50, "{opened} flows were opened, {expected} expected");
    Ok(net(sample))
}

/// Shows by one packet that the program does what the row says.
fn check<A: Family>(bed: &mut Bed, row: &Measured, plan: &mut Plan) -> Result<()> {
    let (_, sent) = bed.once(&mut plan.clone(), bed::nothing(row.program))?;
    let (verdict, got) = bed.once(plan, row.program)?;
    let (Some(from), Some(to)) = (ends::<A>(&sent), ends::<A>(&got)) else { bail!("a packet became too short") };
    let is_xdp = bed::is_xdp(row.program);
    let verdicts = if is_xdp { rows::XDP } else { rows::TC };
    let seen = match verdict {
        verdict if verdict == verdicts.next && sent == got => Outcome::Untouched,
        verdict if verdict == verdicts.next && from != to && !is_xdp => Outcome::Forwarded,
        verdict if verdict == verdicts.redirect && from == (to.1, to.0) => Outcome::Answered,
        verdict if verdict == verdicts.redirect && from != to && is_xdp => Outcome::Forwarded,
        verdict if verdict == verdicts.drop => Outcome::Dropped,
        _ => bail!("verdict {verdict}, {from:x?} became {to:x?}"),
    };
    ensure!(seen == row.outcome, "a packet was {seen:?}, not {:?}", row.outcome);
    Ok(())
}

fn measure_floor<A: Family>(bed: &mut Bed, floor: &Floor, sizes: Sizes) -> Result<Cell> {
    let program = floor.program::<A>();
    let traffic = Traffic { flows: floor.flows, ..new(Kind::Udp) };
    let (mut plan, mut base) = (traffic.plan::<A>()?, traffic.plan::<A>()?);
    if let Some((filler, packets)) = floor.filled_by::<A>() {
        let mut filling = traffic.plan::<A>()?;
        filling.flows = u32::MAX;
        bed.run(&mut filling, filler, packets)?;
        plan.next = filling.next;
    }
    let (verdict, _) = bed.once(&mut plan, program)?;
    ensure!(verdict == rows::TC.next, "verdict {verdict}");
    bed.run(&mut plan, program, sizes.batch / 4)?;
    let bed = std::cell::RefCell::new(bed);
    let sample = in_turn(
        || bed.borrow_mut().run(&mut plan, program, sizes.batch),
        || bed.borrow_mut().run(&mut base, "floor_empty", sizes.batch),
    )?;
    Ok(if floor.gross { cell(sample.0.median, sample.0) } else { net(sample) })
}

fn net((sample, base): (Sample, Sample)) -> Cell {
    cell((sample.median - base.median).max(0.0), sample)
}

fn cell(value: f64, sample: Sample) -> Cell {
    Cell { value, digits: usize::from(value < 20.0), spread: Some(sample.spread()), ratio: None }
}
