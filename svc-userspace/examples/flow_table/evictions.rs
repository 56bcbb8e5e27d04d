//! Live flows that lose their entry while others come and go.
//!
//! In each round all live flows send two packets, a second passes, and as many new flows come as take an eighth of the
//! table; each of them sends one packet. Then the live flows whose forward entry is gone are counted. A flow has two entries: at
//! 50 % the live flows alone take half of the table.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, bail};
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, Map},
};
use svc_common::{Flow, FlowBucket, FlowKey, FlowSlotV4, Hook, flow_table::SLOT_LIVE};

use crate::{ANY, Bench, load, map, pin};

const ENTRIES: u32 = 262_144;
const ROUNDS: u32 = 8;

pub(crate) fn run(objects: &[String]) -> Result<()> {
    pin(0)?;
    println!("{:<40}{}", "LIVE FLOWS EVICTED, %: FIRST ROUND, LATER", objects.join("    "));
    for percent in [25, 50, 100] {
        let live = ENTRIES / 2 * percent / 100;
        print!("{:<40}", format!("{percent} % of the table is live"));
        for object in objects {
            let mut bench = load::<[u8; 4]>(EbpfLoader::new(), object, "V4")?;
            bench.connect()?;
            let mut next = 0x20_0000;
            // What was there before, of nobody any more.
            bench.packets(next, ANY, ENTRIES)?;
            next += ENTRIES;
            bench.packets(0, live - 1, 2 * live)?;
            let mut evicted = 0;
            let mut at_first = 0;
            for round in 0..ROUNDS {
                bench.packets(0, live - 1, 2 * live)?;
                sleep(Duration::from_millis(1_100));
                bench.packets(next, ANY, ENTRIES / 16)?;
                next += ENTRIES / 16;
                let lost = live - present(&mut bench, live)?;
                if round == 0 {
                    at_first = lost;
                } else {
                    evicted += lost;
                }
            }
            let percent = |lost: u32, rounds: u32| f64::from(lost) * 100.0 / f64::from(live * rounds);
            print!("{:>10.3} {:>7.3}", percent(at_first, 1), percent(evicted, ROUNDS - 1));
        }
        println!();
    }
    Ok(())
}

/// Live flows that have their forward entry.
fn present(bench: &mut Bench, live: u32) -> Result<u32> {
    let mut count = 0;
    let mut see = |hook: u8, source: [u8; 4]| {
        let number = u32::from_be_bytes(source) & ANY;
        if hook == Hook::Ingress as u8 && number < live {
            count += 1;
        }
    };
    match map(&mut bench.ebpf, "FLOWS_V4")? {
        array @ Map::Array(_) => {
            let array = Array::<_, FlowBucket<FlowSlotV4>>::try_from(array)?;
            for index in 0..array.len() {
                for slot in array.get(&index, 0)?.slots.iter().filter(|slot| slot.control.state == SLOT_LIVE) {
                    see(slot.control.marks & 1, slot.source);
                }
            }
        }
        lru @ Map::LruHashMap(_) => {
            let lru = HashMap::<_, FlowKey<[u8; 4]>, Flow<[u8; 4]>>::try_from(lru)?;
            for key in lru.keys() {
                let key = key?;
                see(key.hook, key.source);
            }
        }
        _ => bail!("FLOWS_V4 is of another type"),
    }
    Ok(count)
}
