//! Agents of an API server that fails in every way it can.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use svc_lab::{
    Node, Request, Source,
    api::{Api, Cut, Gone, Resource, Verb, serve, write_kubeconfig},
};
use tokio::runtime::Runtime;

use crate::shop::{SMALL, Shop, eventually, is_silent, lasting, logged, progress, service, vips, works};

/// Where the API server's double listens within the node.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 6443);

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
