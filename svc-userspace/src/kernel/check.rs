//! What this kernel and this process offer, by trying it: the report of `svc check`, and the exact errors of a start.
//!
//! Probes leave nothing behind.

use std::{fs, io, os::fd::AsFd, path::Path};

use super::{attach, cgroup, error::KernelError, pins, sys};
use crate::sockets::diag;

/// How a finding affects the dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There, and used.
    Ok,
    /// Something else stands in for it, or one feature is lost.
    Degraded,
    /// Nothing works without it.
    Missing,
}

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked for, and what was found.
    pub what: String,
    /// Whether it will do.
    pub verdict: Verdict,
    /// What follows from it.
    pub consequence: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

impl Finding {
    fn ok(what: impl Into<String>, consequence: &str) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, consequence: consequence.to_owned(), remedy: String::new() }
    }

    fn not(verdict: Verdict, what: impl Into<String>, consequence: &str, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), verdict, consequence: consequence.to_owned(), remedy: remedy.into() }
    }
}

/// Oldest kernel this project works on.
const KERNEL_FLOOR: (u32, u32) = (5, 15);

/// Looks for everything; `bpffs` and `cgroup` as the agent would be given them.
pub fn run(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![kernel(), capabilities(), btf(), bpffs_mounted(bpffs)];
    findings.extend(cgroup.map(cgroup2));
    findings.push(classifiers());
    findings.push(set_retval());
    findings.push(netns_cookie());
    findings.extend(cgroup.map(|_| socket_destroy(diag::probe())));
    findings.push(nf_tables());
    findings.push(forwarding("net/ipv4/ip_forward", "IPv4"));
    findings.push(forwarding("net/ipv6/conf/all/forwarding", "IPv6"));
    findings
}

/// Refuses a kernel or a process that cannot carry a dataplane at all.
pub(super) fn require() -> Result<(), KernelError> {
    for finding in [kernel(), capabilities()] {
        if finding.verdict == Verdict::Missing {
            let Finding { what, consequence, remedy, .. } = finding;
            return Err(KernelError::Missing { what, consequence, remedy });
        }
    }
    Ok(())
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel_finding(release.trim())
}

fn kernel_finding(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let what = format!("kernel {release}");
    if version >= KERNEL_FLOOR {
        return Finding::ok(what, "new enough");
    }
    let (major, minor) = KERNEL_FLOOR;
    Finding::not(
        Verdict::Missing,
        what,
        "the programs and maps need a newer kernel",
        format!("use Linux {major}.{minor} or newer"),
    )
}

/// Numbers of uapi/linux/capability.h.
const CAPABILITIES: [(&str, u32); 3] = [("NET_ADMIN", 12), ("BPF", 39), ("PERFMON", 38)];
const SYS_ADMIN: u32 = 21;

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    capability_finding(u64::from_str_radix(line.trim(), 16).unwrap_or_default())
}

fn capability_finding(effective: u64) -> Finding {
    let has = |number: u32| effective & (1 << number) != 0;
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        // CAP_SYS_ADMIN still includes what CAP_BPF and CAP_PERFMON were split from in 5.8, and nothing of NET_ADMIN.
        .filter(|(name, number)| !(has(*number) || *name != "NET_ADMIN" && has(SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok("capabilities NET_ADMIN, BPF, PERFMON", "programs can be loaded and attached");
    }
    let list = missing.join(", ");
    Finding::not(
        Verdict::Missing,
        format!("capability {list} missing"),
        "programs cannot be loaded and attached",
        format!("run as root, or add {list} to the container's securityContext.capabilities"),
    )
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::ok("BTF", "`bpftool map dump` prints field names");
    }
    Finding::not(
        Verdict::Degraded,
        "BTF missing",
        "`bpftool map dump` prints bytes; everything works",
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

fn bpffs_mounted(bpffs: &Path) -> Finding {
    match pins::require_bpffs(bpffs) {
        Ok(()) => Finding::ok(format!("bpffs at {}", bpffs.display()), "forwarding outlives the agent"),
        Err(_) => Finding::not(
            Verdict::Missing,
            format!("bpffs is not mounted at {}", bpffs.display()),
            "maps and links cannot be pinned",
            "mount -t bpf bpf /sys/fs/bpf",
        ),
    }
}

fn cgroup2(directory: &Path) -> Finding {
    match cgroup::require_cgroup2(directory) {
        Ok(()) => {
            Finding::ok(format!("cgroup v2 at {}", directory.display()), "processes of the host can use Services")
        }
        Err(error) => Finding::not(
            Verdict::Missing,
            error.to_string(),
            "processes of the host cannot use Services",
            match cgroup::mounted_cgroup2() {
                Some(mount) => format!("use --cgroup {mount}"),
                None => "mount -t cgroup2 none /sys/fs/cgroup, or use --socket-lb off".to_owned(),
            },
        ),
    }
}

/// `r0 = 1; exit`.
const RETURN_ONE: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
/// `r1 = -111; call bpf_set_retval; r0 = 0; exit`.
const SET_RETVAL: [u64; 4] = [0xffff_ff91_0000_01b7, 0x0000_00bb_0000_0085, 0x0000_0000_0000_00b7, 0x95];
/// `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: u32 = 10;

fn classifiers() -> Finding {
    match sys::program_load(sys::PROGRAM_CLASSIFIER, 0, &RETURN_ONE) {
        Ok(program) if attach::has_tcx(program.as_fd()) => Finding::ok("TCX", "programs are replaced atomically"),
        Ok(_) => Finding::not(
            Verdict::Degraded,
            "TCX missing (Linux 6.6)",
            "programs are attached by the clsact qdisc, which other tools can remove",
            "use Linux 6.6 or newer",
        ),
        Err(error) => Finding::not(
            Verdict::Missing,
            format!("classifier programs cannot be loaded ({error})"),
            "packets cannot be translated",
            load_remedy(&error),
        ),
    }
}

fn set_retval() -> Finding {
    match sys::program_load(sys::PROGRAM_SOCK_ADDR, CONNECT4, &SET_RETVAL) {
        Ok(_) => Finding::ok("bpf_set_retval", "connecting to a Service without endpoints fails with ECONNREFUSED"),
        Err(error) => match sys::program_load(sys::PROGRAM_SOCK_ADDR, CONNECT4, &RETURN_ONE) {
            Ok(_) => Finding::not(
                Verdict::Degraded,
                "bpf_set_retval missing (Linux 5.18)",
                "connecting to a Service without endpoints fails with EPERM",
                "use Linux 5.18 or newer",
            ),
            Err(_) => Finding::not(
                Verdict::Missing,
                format!("cgroup socket programs cannot be loaded ({error})"),
                "processes of the host cannot use Services",
                load_remedy(&error),
            ),
        },
    }
}

fn load_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "run as root, or add the capabilities BPF, PERFMON and NET_ADMIN",
        _ => "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_CGROUP_BPF",
    }
}

fn netns_cookie() -> Finding {
    match sys::netns_cookie() {
        Ok(_) => Finding::ok("SO_NETNS_COOKIE", "sockets of the host are told from those of pods"),
        Err(error) => Finding::not(
            Verdict::Missing,
            format!("SO_NETNS_COOKIE missing ({error})"),
            "sockets of the host cannot be told from those of pods",
            "use Linux 5.15 or newer",
        ),
    }
}

fn socket_destroy(tried: io::Result<()>) -> Finding {
    let consequence = "connected UDP sockets of the host are not told when their backend goes away, and stick to it";
    match tried {
        Ok(()) => {
            Finding::ok("SOCK_DESTROY", "connected UDP sockets of the host are told when their backend goes away")
        }
        Err(error) if diag::is_unsupported(&error) => Finding::not(
            Verdict::Degraded,
            "SOCK_DESTROY of UDP sockets missing",
            consequence,
            "use a kernel with CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG, or load the module udp_diag",
        ),
        Err(error) => Finding::not(
            Verdict::Degraded,
            format!("SOCK_DESTROY of UDP sockets cannot be tried ({error})"),
            consequence,
            "run with the capability NET_ADMIN, and with the interface lo up",
        ),
    }
}

fn nf_tables() -> Finding {
    match crate::masquerade::probe() {
        Ok(()) => {
            Finding::ok("nf_tables NAT", "the kernel chooses the source ports of masqueraded flows (--masquerade auto)")
        }
        Err(error) => Finding::not(
            Verdict::Degraded,
            error.to_string(),
            "the programs choose the source ports of masqueraded flows (--masquerade auto)",
            "load the modules nf_tables and nft_masq, if the kernel shall choose them",
        ),
    }
}

fn forwarding(path: &str, family: &str) -> Finding {
    let dotted = path.replace('/', ".");
    match fs::read_to_string(Path::new("/proc/sys").join(path)) {
        Ok(value) if value.trim() == "1" => Finding::ok(format!("{dotted} = 1"), "the node forwards"),
        Ok(value) => Finding::not(
            Verdict::Degraded,
            format!("{dotted} = {}", value.trim()),
            &format!("{family} packets of pods and from outside are not forwarded"),
            format!("sysctl -w {dotted}=1"),
        ),
        Err(error) => Finding::not(
            Verdict::Degraded,
            format!("{dotted} cannot be read ({error})"),
            &format!("{family} is not available"),
            format!("enable {family} in the kernel, if the cluster uses it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_floor_is_exact() {
        let verdict = |release| kernel_finding(release).verdict;
        assert_eq!(verdict("5.14.21-generic"), Verdict::Missing);
        assert_eq!(verdict("5.15.0-91-generic"), Verdict::Ok);
        assert_eq!(verdict("6.1.0"), Verdict::Ok);
        assert_eq!(verdict("10.0"), Verdict::Ok);
        assert_eq!(verdict(""), Verdict::Missing);
    }

    #[test]
    fn a_kernel_that_cannot_destroy_sockets_is_told_from_a_machine_that_cannot_try() {
        let finding = |code| socket_destroy(Err(io::Error::from_raw_os_error(code)));
        assert_eq!(socket_destroy(Ok(())).verdict, Verdict::Ok);
        let unsupported = finding(libc::EOPNOTSUPP);
        assert_eq!(unsupported.verdict, Verdict::Degraded);
        assert!(unsupported.remedy.contains("CONFIG_INET_DIAG_DESTROY"), "{}", unsupported.remedy);
        assert!(finding(libc::ENETUNREACH).remedy.contains("lo up"));
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_and_perfmon_but_not_for_net_admin() {
        let verdict = |bits: &[u32]| capability_finding(bits.iter().map(|bit| 1_u64 << bit).sum());
        assert_eq!(verdict(&[12, 38, 39]).verdict, Verdict::Ok);
        assert_eq!(verdict(&[12, 21]).verdict, Verdict::Ok);
        let finding = verdict(&[21]);
        assert_eq!(finding.verdict, Verdict::Missing);
        assert_eq!(finding.what, "capability NET_ADMIN missing");
        assert_eq!(verdict(&[12]).what, "capability BPF, PERFMON missing");
    }
}
