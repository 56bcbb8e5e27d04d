//! Questions for the node's resolvers: what is remembered is not asked again, and only so much is asked at once.
//!
//! It never looks into the zone.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, OpCode, Query, ResponseCode};
use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{ConnectionConfig, NameServerConfig, ResolverOpts},
    net::{
        DnsError, NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle, FirstAnswer},
    },
};

use super::{
    answer::{Question, UDP_MOST},
    cache::{Cache, Key},
    metrics::Counters,
    share::Shares,
};

/// Longest time that a question may take: a client asks again after five seconds.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Bytes of the cache.
const CACHE: usize = 8 << 20;
/// Questions forwarded at once, in all and for a client.
const SHARES: (usize, usize) = (1024, 128);

type Pool = NameServerPool<TokioRuntimeProvider>;

/// The way to the resolvers.
pub(super) struct Forwarder {
    pool: RefCell<Option<Pool>>,
    /// Changes with the resolvers: what the former ones say later is not kept.
    generation: Cell<u64>,
    cache: RefCell<Cache>,
    shares: Rc<Shares>,
    started: Instant,
    counters: Arc<Counters>,
}

impl Forwarder {
    /// Without resolvers.
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            pool: RefCell::new(None),
            generation: Cell::new(0),
            cache: RefCell::new(Cache::new(CACHE)),
            shares: Shares::new(SHARES.0, SHARES.1),
            started: Instant::now(),
            counters,
        }
    }

    /// From now on, these are asked. What the former ones said is forgotten.
    pub(super) fn set_resolvers(&self, addresses: &[SocketAddr]) {
        let pool = match pool(addresses) {
            Ok(pool) => pool,
            Err(error) => {
                tracing::error!(%error, "dns: cannot forward");
                None
            }
        };
        *self.pool.borrow_mut() = pool;
        *self.cache.borrow_mut() = Cache::new(CACHE);
        self.generation.set(self.generation.get() + 1);
    }

    /// An answer that is remembered, and its age in seconds.
    pub(super) fn remembered(&self, query: &Query, question: &Question) -> Option<(Rc<Message>, u32)> {
        let found = self.cache.borrow_mut().get(&key(query, question), self.now());
        if found.is_some() {
            self.counters.cache_hit();
        }
        found
    }

    /// Asks the resolvers.
    pub(super) async fn ask(
        &self,
        query: &Query,
        question: &Question,
        client: IpAddr,
    ) -> Result<Rc<Message>, ResponseCode> {
        let Some(_share) = self.shares.take(client) else {
            self.counters.forward_refused();
            return Err(ResponseCode::ServFail);
        };
        self.counters.set_in_flight(self.shares.taken());
        let generation = self.generation.get();
        let answer = self.exchange(query, question).await;
        self.counters.set_in_flight(self.shares.taken().saturating_sub(1));
        let (message, wire) = answer.inspect_err(|_| self.counters.forward_failed())?;
        let message = Rc::new(message);
        if generation == self.generation.get() {
            let mut cache = self.cache.borrow_mut();
            cache.put(key(query, question), message.clone(), wire, self.now());
            self.counters.set_cache(cache.len(), cache.bytes());
        }
        Ok(message)
    }

    async fn exchange(&self, query: &Query, question: &Question) -> Result<(Message, usize), ResponseCode> {
        let pool = self.pool.borrow().clone().ok_or(ResponseCode::ServFail)?;
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = question.checking_disabled;
        message.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MOST).set_dnssec_ok(question.dnssec_ok);
        message.set_edns(edns);
        let answer = pool.send(DnsRequest::new(message, DnsRequestOptions::default())).first_answer();
        match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(Ok(response)) => {
                let (message, bytes) = response.into_parts();
                Ok((message, bytes.len()))
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                let mut message = Message::response(0, OpCode::Query);
                message.metadata.response_code = none.response_code;
                message.add_query(query.clone());
                message.add_authorities(none.authorities.iter().flat_map(|all| all.iter()).cloned());
                let wire = message.to_vec().map_or(usize::from(UDP_MOST), |bytes| bytes.len());
                Ok((message, wire))
            }
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => Err(code),
            Ok(Err(error)) => {
                tracing::debug!(%error, "dns: a resolver did not answer");
                Err(ResponseCode::ServFail)
            }
            Err(_) => Err(ResponseCode::ServFail),
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

fn key(query: &Query, question: &Question) -> Key {
    Key {
        name: query.name().to_lowercase(),
        kind: query.query_type(),
        dnssec_ok: question.dnssec_ok,
        checking_disabled: question.checking_disabled,
    }
}

fn pool(addresses: &[SocketAddr]) -> Result<Option<Pool>, NetError> {
    if addresses.is_empty() {
        return Ok(None);
    }
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.try_tcp_on_error = true;
    let servers = addresses.iter().map(|address| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    });
    let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
    Ok(Some(NameServerPool::from_config(servers, context, TokioRuntimeProvider::default())))
}
