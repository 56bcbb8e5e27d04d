//! The lab itself, without any agent: its networks carry what a real cluster's would, and nothing of it stays behind.

use std::{net::IpAddr, path::Path, process::Command};

use anyhow::Result;
use svc_lab::{Cni, FailureKind, Lab, Mtu, Place, Request, Source, Spec, plan};

/// Asks over both families and protocols; the server must be `name` and see the client `seen` gives for the family.
fn reach(from: &Place, to: svc_lab::Addresses, name: &str, seen: impl Fn(IpAddr) -> IpAddr) {
    for address in to.both() {
        for request in [Request::tcp((address, 8080)), Request::udp((address, 8080)).payload(4000)] {
            let success = from
                .ask(&request)
                .unwrap_or_else(|failure| panic!("{} → {name} at {address}: {failure} ({request:?})", from.name()));
            assert_eq!(success.answer.server, name);
            assert_eq!(success.answer.client.ip(), seen(address), "{} → {name} at {address}", from.name());
            assert_eq!(success.answer.local.ip(), address);
            assert_eq!((success.peer.ip(), success.peer.port()), (address, 8080));
        }
    }
}

fn traffic_of_a_cluster(spec: Spec) -> Result<()> {
    let lab = Lab::build(spec)?;
    let web = lab.pod(1, "web")?;
    let near = lab.pod(1, "near")?;
    let far = lab.pod(2, "far")?;
    let host = lab.host_pod(2, "host")?;
    for place in [&*web, &*host, lab.outside()] {
        lab.serve(place, 8080)?;
    }

    reach(&near, web.addresses, "web", |family| near.addresses.like(family));
    reach(&far, web.addresses, "web", |family| far.addresses.like(family));
    reach(lab.node(1), web.addresses, "web", |family| own_source(&lab, family));
    reach(lab.outside(), lab.node(2).addresses, "host", |family| plan::OUTSIDE.like(family));
    // The CNI's rule masquerades what leaves the cluster's pod network.
    reach(&near, plan::OUTSIDE, "outside", |family| lab.node(1).addresses.like(family));
    reach(&far, plan::OUTSIDE, "outside", |family| lab.node(2).addresses.like(family));

    let long = far.ask(&Request::tcp((web.addresses.v6, 8080)).upload(3_000_000))?;
    assert_eq!(long.answer.length, 3_000_000);
    let long = far.ask(&Request::tcp((web.addresses.v4, 8080)).download(3_000_000))?;
    assert_eq!(long.answer.length, 3_000_000);
    Ok(())
}

/// A node asks its own pods from its gateway address on a bridge, and from its own address on a routed veth.
fn own_source(lab: &Lab, family: IpAddr) -> IpAddr {
    match lab.spec().cni {
        Cni::Routed => lab.node(1).addresses.like(family),
        Cni::Bridge | Cni::Vxlan => plan::gateway(1).like(family),
    }
}

#[test]
fn routed_veths_carry_every_path() -> Result<()> {
    traffic_of_a_cluster(Spec { cni: Cni::Routed, rp_filter: 1, ..Spec::default() })
}

#[test]
fn bridges_carry_every_path() -> Result<()> {
    traffic_of_a_cluster(Spec { cni: Cni::Bridge, rp_filter: 2, ..Spec::default() })
}

#[test]
fn bridges_carry_every_path_with_br_netfilter() -> Result<()> {
    traffic_of_a_cluster(Spec { cni: Cni::Bridge, br_netfilter: true, ..Spec::default() })
}

#[test]
fn an_overlay_carries_every_path() -> Result<()> {
    traffic_of_a_cluster(Spec { cni: Cni::Vxlan, rp_filter: 1, ..Spec::default() })
}

#[test]
fn nodes_have_the_settings_that_were_asked_for() -> Result<()> {
    let lab = Lab::build(Spec { cni: Cni::Bridge, rp_filter: 2, br_netfilter: true, ..Spec::default() })?;
    let node = lab.node(1);
    for key in ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.cni0.rp_filter"] {
        assert_eq!(node.sysctl(key)?, "2", "{key}");
    }
    assert_eq!(node.sysctl("net.bridge.bridge-nf-call-iptables")?, "1");
    assert_eq!(node.sysctl("net.ipv4.ip_forward")?, "1");
    assert_eq!(node.sysctl("net.ipv6.conf.all.forwarding")?, "1");
    assert!(node.exec("nft", &["list", "table", "inet", "lab"])?.contains("ct state invalid"));
    Ok(())
}

#[test]
fn failures_are_told_apart() -> Result<()> {
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let web = lab.pod(1, "web")?;
    let client = lab.pod(1, "client")?;
    lab.serve(&web, 8080)?;
    for address in web.addresses.both() {
        for request in [Request::tcp((address, 9)), Request::udp((address, 9)), Request::udp((address, 9)).connected()]
        {
            let failure = client.ask(&request).expect_err("nobody listens there");
            assert_eq!(failure.kind, FailureKind::Refused, "{request:?}: {failure}");
        }
    }
    client.ip("route add unreachable 192.0.2.1\nroute add blackhole 192.0.2.2\n")?;
    lab.node(1).ip("route add blackhole 192.0.2.3\n")?;
    let unreachable = client.tcp("192.0.2.1:80".parse::<std::net::SocketAddr>()?).expect_err("no route");
    assert_eq!(unreachable.kind, FailureKind::Unreachable);
    web.exec("nft", &["add table inet t; add chain inet t i { type filter hook input priority 0; policy drop; }"])?;
    let silent = client.ask(&Request::tcp((web.addresses.v4, 8080)).timeout_ms(300)).expect_err("dropped");
    assert_eq!(silent.kind, FailureKind::Timeout);
    Ok(())
}

#[test]
fn many_requests_large_answers_and_chosen_ports() -> Result<()> {
    let lab = Lab::build(Spec::default())?;
    let web = lab.pod(1, "web")?;
    let client = lab.pod(2, "client")?;
    lab.serve(&web, 8080)?;
    for address in web.addresses.both() {
        let answers = client.ask_all(&Request::udp((address, 8080)).count(5).from_port(40_000).payload(60_000))?;
        assert_eq!(answers.len(), 5);
        for answer in answers {
            let answer = answer?.answer;
            assert_eq!((answer.client.port(), answer.length), (40_000, 60_000));
        }
        let padded = client.ask(&Request::udp((address, 8080)).pad(9000).connected())?;
        assert_eq!(padded.answer.padding.len(), 9000);
        let kept = client.ask_all(&Request::tcp((address, 8080)).count(3).kept().from_port(41_000))?;
        let ports: Vec<u16> =
            kept.into_iter().map(|success| success.map(|it| it.source.port())).collect::<Result<_, _>>()?;
        assert_eq!(ports, [41_000; 3]);
    }
    Ok(())
}

#[test]
fn a_steady_probe_counts_what_is_lost() -> Result<()> {
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let web = lab.pod(1, "web")?;
    let client = lab.pod(1, "client")?;
    lab.serve(&web, 8080)?;
    let log = lab.logs().join("steady.log");
    let mut udp = client.steady(&Request::udp((web.addresses.v4, 8080)).timeout_ms(200), 2, &log)?;
    let mut tcp = client.steady(&Request::tcp((web.addresses.v6, 8080)), 2, &log)?;
    let enough = |steady: &mut svc_lab::Steady, wanted: fn(&svc_lab::Report) -> bool| {
        svc_lab::until("the probe's progress", std::time::Duration::from_secs(10), || {
            let report = steady.report().map_err(|error| error.to_string())?;
            if wanted(&report) { Ok(()) } else { Err(format!("{report:?}")) }
        })
    };
    enough(&mut udp, |report| report.answered > 20)?;
    enough(&mut tcp, |report| report.answered > 20)?;
    let report = tcp.stop()?;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.servers.get("web"), Some(&report.answered));
    lab.stop(&web, 8080)?;
    enough(&mut udp, |report| report.lost > 0)?;
    let report = udp.stop()?;
    assert_eq!(report.sent, report.answered + report.lost);
    assert!(!report.is_clean());
    Ok(())
}

#[test]
fn a_narrow_link_outside_is_found_by_path_mtu_discovery() -> Result<()> {
    let lab = Lab::build(Spec { mtu: Mtu { outside: 1300, ..Mtu::default() }, ..Spec::default() })?;
    let host = lab.host_pod(1, "host")?;
    lab.serve(&host, 8080)?;
    for address in host.addresses.both() {
        lab.outside().ask(&Request::tcp((address, 8080)).download(500_000))?;
    }
    assert!(lab.node(1).exec("ip", &["route", "get", "198.51.100.10"])?.contains("via 192.168.50.1"));
    Ok(())
}

#[test]
fn two_labs_with_equal_addresses_do_not_meet() -> Result<()> {
    let labs = [Lab::build(Spec { nodes: 1, ..Spec::default() })?, Lab::build(Spec { nodes: 1, ..Spec::default() })?];
    let pods = [labs[0].pod(1, "first")?, labs[1].pod(1, "second")?];
    assert_eq!(pods[0].addresses, pods[1].addresses);
    for (lab, pod) in labs.iter().zip(&pods) {
        lab.serve(pod, 8080)?;
    }
    for (lab, pod) in labs.iter().zip(&pods) {
        assert_eq!(lab.node(1).tcp((pod.addresses.v4, 8080))?.answer.server, pod.name());
    }
    Ok(())
}

#[test]
fn a_removed_pod_is_gone_and_its_name_is_free() -> Result<()> {
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let pod = lab.pod(1, "web")?;
    let interface = pod.host_interface.clone().unwrap_or_default();
    lab.serve(&pod, 8080)?;
    assert!(lab.pod(1, "web").is_err());
    lab.remove_pod("web")?;
    drop(pod);
    svc_lab::until("the end of the veth", std::time::Duration::from_secs(10), || {
        match lab.node(1).exec("ip", &["link", "show", "dev", &interface]) {
            Err(_) => Ok(()),
            Ok(text) => Err(text),
        }
    })?;
    lab.pod(1, "web")?;
    Ok(())
}

/// Everything on the machine that carries a lab's name.
fn traces(id: &str) -> Vec<String> {
    let netns = Command::new("ip").args(["netns", "list"]).output().expect("ip netns list");
    let mut found: Vec<String> =
        String::from_utf8_lossy(&netns.stdout).lines().filter(|line| line.starts_with(id)).map(str::to_owned).collect();
    for parent in ["/run/svc-lab", "/sys/fs/bpf", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let path = Path::new(parent).join(id);
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    for process in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let read = |file| std::fs::read_to_string(process.path().join(file)).unwrap_or_default();
        // A zombie is dead; who its parent is, and when that looks after it, is no business of the lab's.
        if read("cgroup").contains(&format!("/{id}/")) && !read("status").contains("State:\tZ") {
            found.push(process.path().display().to_string());
        }
    }
    found
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let lab = Lab::build(Spec::default())?;
    let id = lab.id().to_owned();
    let pod = lab.pod(2, "web")?;
    lab.serve(&pod, 8080)?;
    std::fs::create_dir(lab.node(1).bpffs.join("layout-2"))?;
    let mut daemon = lab.node(1).command("sh")?;
    daemon.args(["-c", "sleep 1000 &"]).status()?;
    assert!(traces(&id).len() >= 8, "{:?}", traces(&id));
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_panic_cleans_up() {
    let id = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let told = std::sync::Arc::clone(&id);
    let result = std::thread::spawn(move || {
        let lab = Lab::build(Spec { nodes: 1, ..Spec::default() }).expect("a lab");
        let pod = lab.pod(1, "web").expect("a pod");
        lab.serve(&pod, 8080).expect("a server");
        told.lock().expect("the name").push_str(lab.id());
        panic!("on purpose");
    })
    .join();
    assert!(result.is_err());
    let id = id.lock().expect("the name").clone();
    assert!(id.starts_with("svclab-"));
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_left_is_cleaned_and_what_lives_is_not() -> Result<()> {
    // A lab that is kept is what a killed process leaves, once its lock is gone.
    let lab = Lab::build(Spec { nodes: 1, keep: true, ..Spec::default() })?;
    let pod = lab.pod(1, "web")?;
    lab.serve(&pod, 8080)?;
    let id = lab.id().to_owned();
    assert_eq!(svc_lab::clean(Some(&id))?, Vec::<String>::new());
    assert!(pod.tcp((pod.addresses.v4, 8080)).is_ok());
    drop((lab, pod));
    assert!(!traces(&id).is_empty());
    assert_eq!(svc_lab::clean(Some(&id))?, std::slice::from_ref(&id));
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lab_that_makes_no_sense_is_refused() -> Result<()> {
    let error = Lab::build(Spec { nodes: 0, ..Spec::default() }).expect_err("no nodes");
    assert!(error.to_string().contains("1 to 40 nodes"), "{error}");
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let error = lab.pod(1, "a b").expect_err("a space");
    assert!(error.to_string().contains("\"a b\""), "{error}");
    Ok(())
}

#[test]
fn an_agent_that_ends_at_once_is_reported_with_its_log() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let program = lab.directory().join("svc");
    std::fs::write(&program, "#!/bin/sh\necho \"error: no kernel for $2 $3\" >&2\nexit 3\n")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let manifests = lab.manifests("manifests")?;
    let mut agent = lab.agent(1, Source::Manifests(manifests.path()), &[])?;
    agent.set_program(&program);
    agent.start()?;
    assert!(agent.start().is_err(), "it runs already");
    let error = agent.wait_ready().expect_err("it ended").to_string();
    assert!(error.contains("error: no kernel for --node-name node1"), "{error}");
    assert!(error.contains("exit status: 3"), "{error}");
    Ok(())
}

#[test]
fn an_agent_is_killed_with_its_own_signal_and_can_start_again() -> Result<()> {
    use std::os::unix::{fs::PermissionsExt, process::ExitStatusExt};
    let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
    let program = lab.directory().join("svc");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let manifests = lab.manifests("manifests")?;
    let mut agent = lab.agent(1, Source::Manifests(manifests.path()), &[])?;
    agent.set_program(&program);
    agent.start()?;
    let procs = std::fs::read_to_string(lab.node(1).cgroup().join("cgroup.procs"))?;
    assert!(procs.lines().any(|line| Some(line) == agent.id().map(|id| id.to_string()).as_deref()), "{procs}");
    assert_eq!(agent.terminate()?.signal(), Some(15));
    agent.start()?;
    agent.kill()?;
    assert!(agent.id().is_none());
    Ok(())
}
