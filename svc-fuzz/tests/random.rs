//! Some thousand cases at random: what the fuzz targets do for hours, for a moment, with every run of the tests.

use svc_fuzz::{generate, packets, random};

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
fn objects() {
    random::run("objects", 400, 3000, svc_fuzz::objects);
}
