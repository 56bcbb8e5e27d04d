//! Some thousand cases at random: what the fuzz targets do for hours, for a moment, with every run of the tests.

use svc_fuzz::{generate, objects, packets, random};

#[test]
fn sequences_of_packets() {
    let mut met = packets::Met::default();
    random::run("sequences", 3000, 2000, |bytes| {
        let packets::Met { translated, dropped, refused, answered, opened, held, again } =
            packets::run(&generate::case(bytes));
        met.translated += translated;
        met.dropped += dropped;
        met.refused += refused;
        met.answered += answered;
        met.opened += opened;
        met.held += held;
        met.again += again;
    });
    // Judging is worth something only if there is something to judge.
    println!("{met:?}");
    assert!(met.translated > 3000 && met.dropped > 300 && met.opened > 1000, "{met:?}");
    assert!(met.refused > 300 && met.answered > 30, "{met:?}");
    assert!(met.held > 300 && met.again > 100, "{met:?}");
}

#[test]
fn objects_on_their_way_to_the_maps() {
    let mut met = objects::Met::default();
    random::run("objects", 400, 3000, |bytes| {
        let objects::Met { writes, served } = objects::run(bytes);
        met.writes += writes;
        met.served += served;
    });
    println!("{met:?}");
    assert!(met.served > 300, "{met:?}");
}

#[test]
fn agents_that_end_after_any_of_their_writes() {
    let (mut histories, mut crashes) = (0, 0);
    random::run("objects-crashing", 60, 1000, |bytes| {
        let met = objects::run_crashing(bytes, 150);
        // A history that serves nobody has little that could go wrong.
        histories += u32::from(met.served > 0);
        crashes += met.writes;
    });
    println!("{crashes} crashes in {histories} histories with endpoints");
    assert!(histories > 5 && crashes > 300, "{crashes} crashes in {histories} histories");
}
