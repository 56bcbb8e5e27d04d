//! Real agents in the lab: what survives their end, what they make of sources that misbehave, what they leave behind.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{
    Agent, Endpoint, Lab, LabError, Manifests, Node, Place, Pod, Protocol, Report, Request, Service, Source, Spec,
    Steady,
    api::{Api, Cut, Gone, Resource, Verb, serve, write_kubeconfig},
    until,
};
use tokio::runtime::Runtime;

/// Longest wait for anything, a loaded machine included.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tables small enough for many labs side by side.
const SMALL: [&str; 8] = ["--flows", "4096", "--services", "1024", "--backends", "16384", "--frontends", "4096"];
/// Where the API server's double listens within the node.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);
/// The node port of Services that have one.
const NODE_PORT: u16 = 30_080;

/// The addresses of the nth Service.
fn vips(nth: u8) -> [IpAddr; 2] {
    [format!("10.96.0.{nth}"), format!("fd00:10:96::{nth}")].map(|text| text.parse().expect("an address"))
}

/// The nth Service, which leads to port 8080 of its pods.
fn service(nth: u8) -> Service {
    Service::new("shop", &format!("web-{nth}"), &vips(nth)).port(80, 8080)
}

/// A lab of one node with two pods that serve and one that asks.
struct Shop {
    lab: Lab,
    a: Pod,
    b: Pod,
    client: Pod,
}

impl Shop {
    fn open() -> Result<Self> {
        let lab = Lab::build(Spec { nodes: 1, ..Spec::default() })?;
        let (a, b, client) = (lab.pod(1, "a")?, lab.pod(1, "b")?, lab.pod(1, "client")?);
        lab.serve(&a, 8080)?;
        lab.serve(&b, 8080)?;
        Ok(Self { lab, a, b, client })
    }

    fn node(&self) -> &Node {
        self.lab.node(1)
    }

    fn agent(&self, source: Source<'_>) -> Result<Agent, LabError> {
        self.lab.start_agent(1, source, &SMALL)
    }

    fn pod(&self, name: &str) -> &Pod {
        if name == "a" { &self.a } else { &self.b }
    }

    fn other(&self, name: &str) -> &Pod {
        if name == "a" { &self.b } else { &self.a }
    }

    fn steady(&self, request: &Request) -> Result<Steady> {
        Ok(self.client.steady(request, 5, &self.lab.logs().join("steady.log"))?)
    }
}

/// Waits until a condition holds.
fn eventually(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    Ok(until(what, PATIENCE, || look().map_err(|error| format!("{error:#}")))?)
}

/// Asks the nth Service over both families and protocols from new sockets; all must answer, and nobody but these pods.
fn works(from: &Place, nth: u8, servers: &[&str]) -> Result<()> {
    for address in vips(nth) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let request = Request::new(protocol, (address, 80)).count(6).timeout_ms(2000);
            for answer in from.ask_all(&request)? {
                let server = answer.with_context(|| format!("{protocol:?} {address}"))?.answer.server;
                ensure!(servers.contains(&server.as_str()), "{server} answered for {address}");
            }
        }
    }
    Ok(())
}

/// Asks the nth Service the same way; none may answer.
fn is_silent(from: &Place, nth: u8) -> Result<()> {
    for address in vips(nth) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = from.ask(&Request::new(protocol, (address, 80)).timeout_ms(200));
            ensure!(answer.is_err(), "{protocol:?} {address} answers: {answer:?}");
        }
    }
    Ok(())
}

/// Waits until a probe has had so many more answers, of this server if one is named.
fn progress(steady: &mut Steady, server: Option<&str>, more: u64) -> Result<Report> {
    let count = |report: &Report| match server {
        Some(name) => report.servers.get(name).copied().unwrap_or(0),
        None => report.answered,
    };
    let wanted = count(&steady.report()?) + more;
    Ok(until("the probe's progress", PATIENCE, || {
        let report = steady.report().map_err(|error| error.to_string())?;
        if count(&report) >= wanted { Ok(report) } else { Err(format!("{report:?}")) }
    })?)
}

/// What `svc` says in JSON.
fn said(lab: &Lab, command: &str) -> Result<Vec<Value>> {
    let mut arguments = vec![command, "-o", "json"];
    if command == "flows" {
        arguments.extend(["--limit", "0"]);
    }
    match serde_json::from_str(&lab.svc(1, &arguments)?)? {
        Value::Array(rows) => Ok(rows),
        other => anyhow::bail!("svc {command} says {other}"),
    }
}

/// Rows of `svc` without what traffic and time change.
fn lasting(lab: &Lab, command: &str) -> Result<BTreeSet<String>> {
    let strip = |mut row: Value| {
        if let Some(fields) = row.as_object_mut() {
            for field in ["connections", "packets", "bytes", "idle_seconds", "state"] {
                // The state of a backend lasts; that of a flow does not.
                if field != "state" || command == "flows" {
                    fields.remove(field);
                }
            }
        }
        row.to_string()
    };
    Ok(said(lab, command)?.into_iter().map(strip).collect())
}

/// Waits until the log holds a line with all of these, and returns it.
fn logged(log: &Path, words: &[&str]) -> Result<String> {
    Ok(until(&format!("{words:?} in the log"), PATIENCE, || {
        let text = fs::read_to_string(log).map_err(|error| error.to_string())?;
        let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).ok_or(text)
    })?)
}

/// Ends an agent and starts it again, with all kinds of traffic before, during and after.
fn outlived(end: fn(&mut Agent) -> Result<()>) -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let ports = Service::new("shop", "ports", &vips(2)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &service(1).with(&[&shop.a, &shop.b]))?;
    manifests.write("ports", &ports.with(&[&shop.a, &shop.b]))?;
    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut steady = Vec::new();
    for address in vips(1) {
        steady.push(shop.steady(&Request::tcp((address, 80)))?);
        steady.push(shop.steady(&Request::udp((address, 80)))?);
    }
    let download = Request::tcp((vips(1)[0], 80)).download(20_000_000);
    let services = lasting(&shop.lab, "services")?;
    let backends = lasting(&shop.lab, "backends")?;
    let flows = lasting(&shop.lab, "flows")?;
    ensure!(flows.len() >= 4, "two UDP flows have two entries each: {flows:?}");

    let new = || -> Result<()> {
        works(&shop.client, 1, &["a", "b"])?;
        works(shop.node(), 1, &["a", "b"])?;
        let outside = Request::tcp((shop.node().addresses.v4, NODE_PORT)).count(4);
        shop.lab.outside().ask_all(&outside)?.into_iter().try_for_each(|answer| answer.map(drop))?;
        Ok(())
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let streams = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                shop.client.ask(&download)?;
            }
            Ok(())
        });
        let connections = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                new()?;
            }
            Ok(())
        });
        let mut restart = || -> Result<()> {
            end(&mut agent)?;
            steady.iter_mut().try_for_each(|steady| progress(steady, None, 20).map(drop))?;
            ensure!(lasting(&shop.lab, "services")? == services, "services changed without an agent");
            agent.start()?;
            agent.wait_ready()?;
            steady.iter_mut().try_for_each(|steady| progress(steady, None, 20).map(drop))
        };
        let restarted = restart();
        done.store(true, Ordering::Release);
        restarted?;
        streams.join().expect("the thread of streams").context("a stream")?;
        connections.join().expect("the thread of connections").context("a new connection")
    })?;

    assert_eq!(lasting(&shop.lab, "services")?, services);
    assert_eq!(lasting(&shop.lab, "backends")?, backends);
    let after = lasting(&shop.lab, "flows")?;
    assert!(flows.is_subset(&after), "{flows:#?} became {after:#?}");
    for steady in steady {
        let first = steady.first.answer.server.clone();
        let report = steady.stop()?;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.servers.keys().collect::<Vec<_>>(), [&first], "no flow changes its backend");
    }
    logged(agent.log(), &["dataplane started", &format!("adopted_services={}", services.len())])?;
    logged(agent.log(), &["every Service is programmed", "services=2", "writes=0"])?;
    Ok(())
}

#[test]
fn a_killed_agent_is_not_missed_and_the_next_one_finds_nothing_to_write() -> Result<()> {
    outlived(|agent| Ok(agent.kill()?))
}

#[test]
fn a_terminated_agent_is_not_missed_and_the_next_one_finds_nothing_to_write() -> Result<()> {
    outlived(|agent| {
        let status = agent.terminate()?;
        ensure!(status.code() == Some(0), "it ended with {status}, signal {:?}", status.signal());
        Ok(())
    })
}

/// The API server's double within a node.
struct Cluster {
    api: Api,
    runtime: Runtime,
    kubeconfig: std::path::PathBuf,
}

impl Cluster {
    fn new(shop: &Shop) -> Result<Self> {
        let kubeconfig = shop.lab.directory().join("kubeconfig");
        write_kubeconfig(&kubeconfig, API.into())?;
        let api = Api::new();
        for node in shop.lab.node_objects() {
            api.apply(node);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { api, runtime, kubeconfig })
    }

    /// Answers from now on.
    fn serve(&self, node: &Node) -> Result<()> {
        let listener = node.enter(|| TcpListener::bind(SocketAddr::from(API)))??;
        self.runtime.spawn(serve(listener, self.api.clone()));
        Ok(())
    }

    fn apply(&self, objects: Vec<Value>) {
        for object in objects {
            self.api.apply(object);
        }
    }

    fn watched(&self) -> Result<()> {
        eventually("all watches", || {
            let open = Resource::ALL.map(|resource| self.api.watching(resource));
            ensure!(open.iter().all(|&count| count > 0), "open: {open:?}");
            Ok(())
        })
    }
}

#[test]
fn services_of_the_kubernetes_api_are_served_whatever_becomes_of_the_api() -> Result<()> {
    let shop = Shop::open()?;
    let cluster = Cluster::new(&shop)?;
    cluster.serve(shop.node())?;
    let api = &cluster.api;
    cluster.apply(service(1).with(&[&shop.a]));
    let mut agent = shop.agent(Source::Kubeconfig(&cluster.kubeconfig))?;
    works(&shop.client, 1, &["a"])?;
    let mut udp = shop.steady(&Request::udp((vips(1)[0], 80)))?;
    let mut move_to = |name: &str| -> Result<()> {
        cluster.apply(service(1).slices(&[shop.pod(name)]));
        progress(&mut udp, Some(name), 5).map(drop).with_context(|| format!("moving to {name}"))
    };

    move_to("b").context("without any fault")?;
    cluster.watched()?;
    api.cut_watches(Cut::Abrupt { after: 30 });
    move_to("a").context("after a cut")?;
    cluster.watched()?;
    api.gone(3, Gone::Event);
    api.cut_watches(Cut::Clean);
    move_to("b").context("after 410 in an event")?;
    cluster.watched()?;
    api.gone(3, Gone::Status);
    api.forget_history();
    api.cut_watches(Cut::Clean);
    move_to("a").context("after 410 as a status")?;
    cluster.watched()?;
    api.fail(3, 500);
    api.cut_watches(Cut::Truncated { after: 7 });
    move_to("b").context("after failures of the server")?;
    cluster.watched()?;

    let broken = json!({"metadata": {"namespace": "shop", "name": "broken"},
        "spec": {"clusterIP": 7, "clusterIPs": 7, "ports": "many"}});
    api.inject(Resource::Services, "shop", "broken", broken);
    cluster.apply(service(2).with(&[&shop.a]));
    eventually("a Service next to a malformed one", || works(&shop.client, 2, &["a"]))?;
    logged(agent.log(), &["WARN", "shop/broken", "spec.ports"])?;
    let labels = r#"kind="Service",namespace="shop",name="broken",field="spec.ports""#;
    eventually("the metric of the malformed object", || {
        let metrics = agent.metrics()?;
        let problems: Vec<_> = metrics.lines().filter(|line| line.starts_with("svc_object_problem")).collect();
        ensure!(problems.iter().any(|line| line.contains(labels)), "{problems:?}");
        Ok(())
    })?;

    let ended = fs::read_to_string(agent.log())?.lines().count();
    api.refuse(true);
    eventually("the loss of the API to be noticed", || {
        let text = fs::read_to_string(agent.log())?;
        let noticed = text.lines().skip(ended).any(|line| line.contains("WARN") && line.contains("127.0.0.1:6443"));
        ensure!(noticed, "{text}");
        Ok(())
    })?;
    works(&shop.client, 1, &["b"])?;
    works(&shop.client, 2, &["a"])?;
    api.refuse(false);
    move_to("a").context("after the API was away")?;
    works(&shop.client, 1, &["a"])?;
    assert!(udp.stop()?.is_clean(), "every datagram was answered");
    assert!(agent.has_ended()?.is_none());
    Ok(())
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() -> Result<()> {
    let shop = Shop::open()?;
    let cluster = Cluster::new(&shop)?;
    cluster.serve(shop.node())?;
    let api = &cluster.api;
    cluster.apply(service(1).with(&[&shop.a]));
    cluster.apply(service(2).with(&[&shop.b]));
    let mut agent = shop.agent(Source::Kubeconfig(&cluster.kubeconfig))?;
    let state = |what| lasting(&shop.lab, what);
    let before = (state("services")?, state("backends")?);
    agent.kill()?;

    api.hold(Resource::EndpointSlices, true);
    api.delete(Resource::Services, "shop", "web-2");
    cluster.apply(service(3).with(&[&shop.a]));
    let (lists, watches) =
        (api.requests(Resource::EndpointSlices, Verb::List), api.requests(Resource::Services, Verb::Watch));
    agent.start()?;
    eventually("the list of Services, and the question for the other", || {
        let seen = api.requests(Resource::Services, Verb::Watch) > watches;
        ensure!(seen && api.requests(Resource::EndpointSlices, Verb::List) > lists, "not yet");
        Ok(())
    })?;
    logged(agent.log(), &["adopted_services=8"])?;
    eventually("the health port", || {
        let (code, body) = agent.healthz("/healthz")?;
        ensure!(code == 503, "/healthz says {code}: {body}");
        Ok(())
    })?;
    works(&shop.client, 1, &["a"])?;
    works(&shop.client, 2, &["b"])?;
    assert_eq!((state("services")?, state("backends")?), before);
    assert_eq!(fs::read_to_string(agent.log())?.matches("every Service is programmed").count(), 1, "the first agent's");

    api.hold(Resource::EndpointSlices, false);
    agent.wait_ready()?;
    works(&shop.client, 1, &["a"])?;
    works(&shop.client, 3, &["a"])?;
    is_silent(&shop.client, 2)
}

#[test]
fn an_api_that_is_away_is_named_with_its_remedy_and_served_from_when_it_comes() -> Result<()> {
    let shop = Shop::open()?;
    let cluster = Cluster::new(&shop)?;
    cluster.apply(service(1).with(&[&shop.a]));
    let mut agent = shop.lab.agent(1, Source::Kubeconfig(&cluster.kubeconfig), &SMALL)?;
    agent.start()?;
    logged(agent.log(), &["cannot list services", "http://127.0.0.1:6443", "check that the API server is up"])?;
    assert!(agent.has_ended()?.is_none());
    cluster.serve(shop.node())?;
    agent.wait_ready()?;
    works(&shop.client, 1, &["a"])?;
    Ok(())
}

#[test]
fn a_broken_manifest_is_named_by_line_and_its_last_good_content_stays() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("one", &service(1).with(&[&shop.a]))?;
    let agent = shop.agent(Source::Manifests(manifests.path()))?;
    manifests.write_text("one.json", "{\n  \"kind\": \"List\",\n  \"items\": [}\n")?;
    manifests.write("two", &service(2).with(&[&shop.b]))?;
    eventually("the Service of a good file", || works(&shop.client, 2, &["b"]))?;
    let line = logged(agent.log(), &["WARN", "one.json"])?;
    assert!(line.contains("3:"), "line 3 is not named: {line}");
    works(&shop.client, 1, &["a"])?;
    manifests.write("one", &service(1).with(&[&shop.b]))?;
    eventually("the corrected file", || works(&shop.client, 1, &["b"]))?;
    manifests.remove("one")?;
    eventually("the end of a removed Service", || is_silent(&shop.client, 1))?;
    works(&shop.client, 2, &["b"])
}

#[test]
fn a_node_port_stops_at_once_when_a_service_becomes_cluster_ip() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let ports = Service::new("shop", "web", &vips(1)).node_port(80, 8080, NODE_PORT);
    manifests.write("web", &ports.with(&[&shop.a]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let asked: Vec<Request> =
        shop.node().addresses.both().into_iter().map(|it| Request::tcp((it, NODE_PORT))).collect();
    for request in &asked {
        shop.lab.outside().ask(request)?;
    }
    manifests.write("web", &Service::new("shop", "web", &vips(1)).port(80, 8080).with(&[&shop.a]))?;
    eventually("the frontends to go", || {
        let left = lasting(&shop.lab, "services")?.into_iter().filter(|row| row.contains("node-port")).count();
        ensure!(left == 0, "{left} rows with node ports");
        Ok(())
    })?;
    for request in asked {
        assert!(shop.lab.outside().ask(&request.timeout_ms(300)).is_err());
    }
    works(&shop.client, 1, &["a"])
}

#[test]
fn nonsense_next_to_good_objects_leaves_these_alone() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("good", &service(1).with(&[&shop.a]))?;
    let mut agent = shop.lab.start_agent(1, Source::Manifests(manifests.path()), &["--backends", "16384"])?;

    let mut absurd = service(2).with(&[&shop.a]);
    for port in [json!(0), json!(-1), json!(70_000), json!("http"), json!(1e40), json!(null)] {
        absurd[0]["spec"]["ports"]
            .as_array_mut()
            .context("ports")?
            .push(json!({"name": port.to_string(), "port": port}));
    }
    absurd.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": 7, "spec": []}));
    absurd.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": [[]]}));
    manifests.write("absurd", &absurd)?;
    manifests.write("no-objects", &[json!([[]]), json!(7)])?;
    let mut twice = service(3).with(&[&shop.a, &shop.a, &shop.a]);
    let mut again = twice[1].clone();
    again["metadata"]["name"] = "again".into();
    twice.push(again);
    // A second Service that claims the addresses of the first.
    let mut thief = service(1);
    thief.object["metadata"]["name"] = "thief".into();
    twice.extend(thief.with(&[&shop.b]));
    manifests.write("twice", &twice)?;
    manifests.write("empty", &service(4).with(&[]))?;
    let crowd = Service::new("shop", "crowd", &vips(5)).one_port(Protocol::Tcp, 80, 8080, None);
    let mut slices = crowd.with(&[&shop.a]);
    let endpoint = |nth: u32| json!({"addresses": [format!("10.200.{}.{}", nth / 250, nth % 250 + 1)]});
    slices[1]["endpoints"] = (0..5000).map(endpoint).collect();
    manifests.write("crowd", &slices)?;

    eventually("a Service with duplicate endpoints", || works(&shop.client, 3, &["a"]))?;
    eventually("a Service with absurd ports", || works(&shop.client, 2, &["a"]))?;
    eventually("5,000 endpoints", || {
        let rows = said(&shop.lab, "services")?;
        let crowd = rows.iter().find(|row| row.to_string().contains("crowd") && row.to_string().contains("10.96.0.5"));
        ensure!(crowd.is_some_and(|row| row["active_backends"] == 5000), "{crowd:?}");
        Ok(())
    })?;
    eventually("the rejection of a Service without endpoints", || {
        let refused = shop.client.tcp((vips(4)[0], 80));
        ensure!(refused.as_ref().is_err_and(|it| it.kind == svc_lab::FailureKind::Refused), "{refused:?}");
        Ok(())
    })?;
    works(&shop.client, 1, &["a"])?;
    for words in [["shop/web-2", "spec.ports[2].port"], ["shop/thief", "web-1"]] {
        logged(agent.log(), &words)?;
    }
    assert!(agent.has_ended()?.is_none());
    let (code, body) = agent.healthz("/livez")?;
    assert_eq!(code, 200, "{body}");
    Ok(())
}

#[test]
fn endpoints_that_terminate_or_go_lose_new_flows_then_udp_and_never_tcp() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    let web = service(1);
    manifests.write("web", &web.with(&[&shop.a, &shop.b]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut tcp = shop.steady(&Request::tcp((vips(1)[0], 80)))?;
    let leaving = tcp.first.answer.server.clone();
    let staying = shop.other(&leaving).name().to_owned();
    // A UDP flow to the same pod, from a port of its own.
    let mut udp = (40_000..40_032)
        .map(|port| shop.steady(&Request::udp((vips(1)[1], 80)).from_port(port)))
        .find(|steady| !matches!(steady, Ok(steady) if steady.first.answer.server != leaving))
        .context("no flow out of 32 to one of two pods")??;

    let mut objects = vec![web.object.clone()];
    let ends = [Endpoint::terminating(shop.pod(&leaving)), Endpoint::ready(shop.pod(&staying))];
    objects.extend(web.slices_of(&ends));
    manifests.write("web", &objects)?;
    eventually("the backend to terminate", || {
        let rows = said(&shop.lab, "services")?;
        ensure!(rows.iter().all(|row| row["terminating_backends"] == 1), "{rows:?}");
        Ok(())
    })?;
    (0..4).try_for_each(|_| works(&shop.client, 1, &[&staying]))?;
    progress(&mut tcp, Some(&leaving), 5).context("TCP to a terminating endpoint")?;
    progress(&mut udp, Some(&leaving), 5).context("UDP to a terminating endpoint")?;

    manifests.write("web", &web.with(&[shop.pod(&staying)]))?;
    progress(&mut udp, Some(&staying), 5).context("UDP after its endpoint was removed")?;
    let before = udp.report()?.servers[&leaving];
    progress(&mut udp, Some(&staying), 20)?;
    let report = udp.stop()?;
    assert_eq!(report.servers[&leaving], before, "it does not go back");
    assert!(report.is_clean(), "{report:?}");
    progress(&mut tcp, Some(&leaving), 20).context("TCP after its endpoint was removed")?;
    let report = tcp.stop()?;
    assert!(report.is_clean() && report.servers.len() == 1, "{report:?}");
    Ok(())
}

/// Everything below a node's pin directory; nothing if there is none.
fn pins(node: &Node) -> Result<BTreeSet<String>> {
    fn walk(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            }
            found.insert(path.display().to_string());
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    // Cleaning up removes the directory, too.
    if node.bpffs.exists() {
        walk(&node.bpffs, &mut found)?;
    }
    Ok(found)
}

#[test]
fn a_pod_that_came_late_is_served_and_one_that_went_leaves_no_pins() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let _agent = shop.agent(Source::Manifests(manifests.path()))?;
    let before = pins(shop.node())?;
    let late = shop.lab.pod(1, "late")?;
    shop.lab.serve(&late, 8080)?;
    // UDP of pods goes through the programs of their interfaces.
    eventually("programs on the new interface", || works(&late, 1, &["a"]))?;
    manifests.write("web", &service(1).with(&[&late]))?;
    eventually("the late pod as a backend", || works(&shop.client, 1, &["late"]))?;
    let with = pins(shop.node())?;
    assert!(with.is_superset(&before) && with.len() > before.len(), "{with:?}");
    drop(late);
    shop.lab.remove_pod("late")?;
    eventually("the pins to go", || {
        let now = pins(shop.node())?;
        ensure!(now == before, "left: {:?}", now.difference(&before).collect::<Vec<_>>());
        Ok(())
    })
}

/// Runs `svc agent` to its end, which must come by itself.
fn refused(node: &Node, bpffs: &Path, manifests: &Manifests) -> Result<(ExitStatus, String)> {
    let mut command = node.command(svc_lab::svc_program()?)?;
    command.args(["agent", "--node-name", "node1", "--uplink", "eth0", "--manifests"]).arg(manifests.path());
    command.arg("--bpffs").arg(bpffs).arg("--cgroup").arg(node.cgroup());
    command.args(["--metrics-address", "127.0.0.1:20249", "--healthz-address", "127.0.0.1:20256"]).args(SMALL);
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let ended = until("the agent's refusal", PATIENCE, || match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ended?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn an_agent_without_a_bpffs_or_next_to_another_one_says_so_and_ends() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;

    let plain = shop.lab.directory().join("plain");
    fs::create_dir(&plain)?;
    let (status, text) = refused(shop.node(), &plain, &manifests)?;
    assert!(!status.success());
    let expected = format!("error: cannot start the agent: caused by bpffs is not mounted at {}", plain.display());
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("hint: mount -t bpf bpf /sys/fs/bpf"), "{text}");

    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let (status, text) = refused(shop.node(), &shop.node().bpffs, &manifests)?;
    assert!(!status.success());
    let expected = format!("{} is in use by another agent", shop.node().bpffs.display());
    assert!(text.contains(&expected), "{text}");
    assert!(agent.has_ended()?.is_none());
    works(&shop.client, 1, &["a"])
}

#[test]
fn cleanup_removes_everything_and_finds_nothing_the_second_time() -> Result<()> {
    let shop = Shop::open()?;
    let manifests = shop.lab.manifests("manifests")?;
    manifests.write("web", &service(1).with(&[&shop.a]))?;
    let mut agent = shop.agent(Source::Manifests(manifests.path()))?;
    let mut programs = Vec::new();
    for path in pins(shop.node())?.into_iter().filter(|path| path.contains("/programs/svc_")) {
        let shown: Value =
            serde_json::from_str(&shop.node().exec("bpftool", &["-j", "prog", "show", "pinned", &path])?)?;
        programs.push(shown["id"].as_u64().with_context(|| format!("no id in {shown}"))?.to_string());
    }
    assert!(programs.len() >= 12, "{programs:?}");
    let tables = || shop.node().exec("nft", &["list", "tables"]);
    assert!(tables()?.contains("table inet svc"));
    agent.terminate()?;
    works(&shop.client, 1, &["a"])?;
    let first = shop.lab.svc(1, &["cleanup"])?;
    assert!(first.starts_with("Detached ") && first.contains("nftables"), "{first}");
    assert_eq!(pins(shop.node())?, BTreeSet::new());
    assert!(!tables()?.contains("table inet svc"));
    // A program that is attached anywhere would live on.
    eventually("the programs to be freed", || {
        let alive: Vec<_> =
            programs.iter().filter(|id| shop.node().exec("bpftool", &["prog", "show", "id", id]).is_ok()).collect();
        ensure!(alive.is_empty(), "alive: {alive:?}");
        Ok(())
    })?;
    is_silent(&shop.client, 1)?;
    let second = shop.lab.svc(1, &["cleanup"])?;
    assert!(second.starts_with("Nothing to remove"), "{second}");
    agent.start()?;
    agent.wait_ready()?;
    works(&shop.client, 1, &["a"])
}
