//! The nf_tables rules as `nft` sees them, and what a check finds.

mod kernel_support;

use kernel_support::{in_place, run};
use svc_userspace::masquerade;

#[test]
fn nft_prints_the_rules_and_installing_twice_leaves_one_of_each() {
    in_place(|_| {
        let ruleset = || run("nft", &["-y", "list", "ruleset"]);
        for _ in 0..2 {
            masquerade::install(0x1000).expect("install");
            let rules = ruleset();
            for expected in [
                "table inet svc {",
                "type nat hook postrouting priority 99; policy accept;",
                "meta mark & 0x00001000 == 0x00001000 masquerade\n",
                "type filter hook postrouting priority 101; policy accept;",
                "meta mark & 0x00001000 == 0x00001000 meta mark set meta mark & 0xffffefff\n",
            ] {
                assert_eq!(rules.matches(expected).count(), 1, "{expected} in {rules}");
            }
        }
        // What somebody else put into the table goes, what is in other tables stays.
        run("nft", &["add", "rule", "inet", "svc", "masquerading", "counter"]);
        run("nft", &["add", "table", "inet", "other"]);
        masquerade::install(0x2000).expect("install");
        assert!(!ruleset().contains("counter"), "{}", ruleset());
        assert!(ruleset().contains("0x00002000"), "{}", ruleset());
        assert!(masquerade::remove().expect("remove"));
        assert!(!masquerade::remove().expect("remove again"));
        assert_eq!(ruleset().trim(), "table inet other {\n}");
    });
}

#[test]
fn a_check_finds_everything_here_and_leaves_nothing() {
    in_place(|place| {
        use svc_userspace::kernel::check::{Verdict, run as check};
        let findings = check(&place.bpffs, Some(&place.cgroup));
        let missing: Vec<_> = findings.iter().filter(|finding| finding.verdict == Verdict::Missing).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let of = |what: &str| {
            let mut all = findings.iter().filter(|finding| finding.what.starts_with(what));
            (all.next().map(|finding| (finding.verdict, finding.remedy.as_str())), all.count())
        };
        assert_eq!(of("TCX"), (Some((Verdict::Ok, "")), 0));
        assert_eq!(of("bpf_set_retval"), (Some((Verdict::Ok, "")), 0));
        assert_eq!(of("nf_tables NAT"), (Some((Verdict::Ok, "")), 0));
        // A new network namespace forwards no IPv6 packet.
        let forwarding = of("net.ipv6.conf.all.forwarding").0.expect("a finding");
        assert_eq!(forwarding, (Verdict::Degraded, "sysctl -w net.ipv6.conf.all.forwarding=1"));
        assert_eq!(run("nft", &["list", "ruleset"]).trim(), "");

        let elsewhere = tempfile::tempdir().expect("a directory");
        let findings = check(&elsewhere.path().join("svc"), Some(elsewhere.path()));
        let missing: Vec<_> = findings.iter().filter(|finding| finding.verdict == Verdict::Missing).collect();
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert_eq!(missing[0].remedy, "mount -t bpf bpf /sys/fs/bpf");
        assert!(missing[1].remedy.starts_with("use --cgroup /"), "{missing:?}");
    });
}
