//! The nf_tables rule, as `nft` sees it and as packets do.

mod kernel_support;

use kernel_support::{in_place, run};
use svc_userspace::masquerade;

const RULE: &str = "meta mark & 0x00001000 == 0x00001000 meta mark set meta mark & 0xffffefff masquerade";

#[test]
fn nft_prints_the_rule_and_installing_twice_leaves_one() {
    in_place(|_| {
        let ruleset = || run("nft", &["list", "ruleset"]);
        for _ in 0..2 {
            masquerade::install(0x1000).expect("install");
            assert_eq!(ruleset().matches("masquerade").count(), 1, "{}", ruleset());
            assert!(ruleset().contains(RULE), "{}", ruleset());
            assert!(ruleset().contains("table inet svc"), "{}", ruleset());
            assert!(ruleset().contains("type nat hook postrouting priority 99; policy accept;"), "{}", ruleset());
        }
        // What somebody else put into the table goes, what is in other tables stays.
        run("nft", &["add", "rule", "inet", "svc", "postrouting", "counter"]);
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
