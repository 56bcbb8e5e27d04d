//! Seeds of the fuzz targets, and everything they ever found, each in a file of its own: with every run of the tests.

use std::{
    fs,
    panic::{catch_unwind, resume_unwind},
    path::Path,
};

use svc_fuzz::{generate, packets, trace};

/// Runs every file of a target; a directory that is missing or empty is a failure, too.
fn replay(target: &str, run: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    for kind in ["seeds", "regressions"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target);
        let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut count = 0;
        for file in files {
            let file = file.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            if let Err(panic) = catch_unwind(|| run(&bytes)) {
                eprintln!("this was {}", file.display());
                resume_unwind(panic);
            }
            count += 1;
        }
        assert!(count > 0, "{} is empty", directory.display());
    }
}

#[test]
fn frames() {
    replay("frames", svc_fuzz::frames);
}

#[test]
fn sequences() {
    replay("sequences", svc_fuzz::sequences);
}

#[test]
fn objects() {
    replay("objects", svc_fuzz::objects);
}

/// A seed of this name of both families, and how many of its packets are translated at least.
#[track_caller]
fn translates(name: &str, at_least: u32) {
    for family in ["v4", "v6"] {
        let file = format!("{}/../fuzz/seeds/frames/{name}-{family}", env!("CARGO_MANIFEST_DIR"));
        let met = packets::run(&trace::read(&fs::read(&file).unwrap()));
        assert!(met.translated >= at_least, "{file}: {met:?}");
    }
}

#[test]
fn the_seeds_reach_what_they_are_named_after() {
    translates("tcp-connection", 5 + 3);
    translates("udp-wrong-checksum", 1);
    translates("fragments", 3);
    translates("hairpin", 10 + 2);
    translates("vlan", 2);
    translates("no-link-header", 1);
    translates("error-unreachable", 1 + 2);
    assert_eq!(generate::case(&[]).events, []);
}
