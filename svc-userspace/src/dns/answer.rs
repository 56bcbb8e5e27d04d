//! From a request's bytes to an answer's: what is refused, aliases followed, sizes, EDNS. Pure: whatever needs a resolver
//! comes back as [`Step::Forward`].

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::BinEncodable,
};

use super::zone::{self, Answer, TTL, Window, Zone};

/// Largest answer over UDP, bytes: what fits into the smallest IPv6 packet (DNS Flag Day 2020).
pub const UDP_MOST: u16 = 1232;
/// Largest answer over UDP to a client that says nothing of sizes.
const UDP_PLAIN: u16 = 512;
/// Largest query, bytes.
pub const QUERY_MOST: usize = 4096;
/// Bytes of a header.
const HEADER: usize = 12;
/// How a name that begins there is referred to.
const TO_QUESTION: u16 = 0xc000 | 0x0c;
/// Bytes of an OPT record without options.
const OPT: usize = 11;
/// Bytes of a record besides its name and its data.
const FIXED: usize = 10;
/// Bytes of a name that was written before.
const POINTER: usize = 2;
/// Aliases followed.
const ALIASES: usize = 8;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What becomes of a request at first sight.
#[derive(Debug)]
pub enum Request {
    /// Nothing can be said to it.
    Drop(Dropped),
    /// It is answered at once.
    Refuse(Vec<u8>, ResponseCode),
    /// It is a question.
    Ask(Question),
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It has no whole header.
    Malformed,
    /// It is an answer.
    Response,
}

/// A question that makes sense.
#[derive(Clone, Debug)]
pub struct Question {
    /// The name, type and class.
    pub query: Query,
    /// DNSSEC records are wanted.
    pub dnssec_ok: bool,
    /// The resolvers are not to check signatures.
    pub checking_disabled: bool,
    id: u16,
    recursion_desired: bool,
    authentic_data: bool,
    edns: bool,
    /// Most bytes of the answer.
    room: usize,
}

/// What to do with a question.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Done(Vec<u8>, ResponseCode),
    /// Ask a resolver, then call [`forwarded`].
    Forward(Box<Forward>),
}

/// A question, or the rest of one, for a resolver.
#[derive(Debug)]
pub struct Forward {
    /// The question of the client.
    pub question: Question,
    /// What to ask.
    pub query: Query,
    /// Aliases that led to it.
    aliases: Vec<Record>,
}

/// What a message will consist of.
#[derive(Debug, Default)]
struct Draft {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

/// Looks at a request.
pub fn read(bytes: &[u8], transport: Transport) -> Request {
    // Third byte: the highest bit marks an answer, the next four are the operation.
    let (Some(&[high, low]), Some(&flags), true) = (bytes.first_chunk(), bytes.get(2), bytes.len() >= HEADER) else {
        return Request::Drop(Dropped::Malformed);
    };
    if flags & 0x80 != 0 {
        return Request::Drop(Dropped::Response);
    }
    let id = u16::from_be_bytes([high, low]);
    let refuse = |code| match Message::error_msg(id, OpCode::from_u8(flags >> 3 & 15), code).to_vec() {
        Ok(bytes) => Request::Refuse(bytes, code),
        Err(_) => Request::Drop(Dropped::Malformed),
    };
    if bytes.len() > QUERY_MOST {
        return refuse(ResponseCode::FormErr);
    }
    if OpCode::from_u8(flags >> 3 & 15) != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    let udp = message.edns.as_ref().map_or(UDP_PLAIN, |edns| edns.max_payload().clamp(UDP_PLAIN, UDP_MOST));
    let question = Question {
        query: query.clone(),
        dnssec_ok: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        checking_disabled: message.metadata.checking_disabled,
        id,
        recursion_desired: message.metadata.recursion_desired,
        authentic_data: message.metadata.authentic_data,
        edns: message.edns.is_some(),
        room: match transport {
            Transport::Udp => udp.into(),
            Transport::Tcp => u16::MAX.into(),
        },
    };
    let code = if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        ResponseCode::BADVERS
    } else if query.query_class() != DNSClass::IN || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        ResponseCode::Refused
    } else {
        return Request::Ask(question);
    };
    match question.encode(Draft { code, ..Draft::default() }) {
        Ok(bytes) => Request::Refuse(bytes, code),
        Err(_) => refuse(ResponseCode::ServFail),
    }
}

/// Answers a question as far as the zone knows. `turn` is another number each time.
pub fn answer(zone: &Zone, question: Question, turn: usize) -> Step {
    match follow(zone, &question, turn) {
        Ok(Followed::Here(draft)) => question.finish(draft),
        Ok(Followed::Elsewhere(query, aliases)) => Step::Forward(Box::new(Forward { question, query, aliases })),
        Err(_) => question.fail(ResponseCode::ServFail),
    }
}

enum Followed {
    Here(Draft),
    Elsewhere(Query, Vec<Record>),
}

fn follow(zone: &Zone, question: &Question, turn: usize) -> Result<Followed, ProtoError> {
    let kind = question.query.query_type();
    // Fewer fit: no record is smaller.
    let least = match kind {
        RecordType::AAAA => POINTER + FIXED + 16,
        RecordType::SRV => POINTER + FIXED + 6 + zone.domain().len(),
        _ => POINTER + FIXED + 4,
    };
    let window = Window { turn, most: question.room / least + 1 };
    let mut name = question.query.name().clone();
    let mut draft = Draft { authoritative: true, ..Draft::default() };
    for _ in 0..=ALIASES {
        match zone.answer(&name, kind, window)? {
            // Nobody is asked for everything: large answers are what forged questions are for.
            Answer::Elsewhere if kind == RecordType::ANY => {
                draft.authoritative = false;
                draft.answers.push(Record::from_rdata(name, TTL, zone::not_everything()));
                return Ok(Followed::Here(draft));
            }
            Answer::Elsewhere => {
                let mut query = question.query.clone();
                query.set_name(name);
                return Ok(Followed::Elsewhere(query, draft.answers));
            }
            Answer::NotYet => {
                draft.code = ResponseCode::ServFail;
                draft.authoritative = false;
                return Ok(Followed::Here(draft));
            }
            Answer::NoName => {
                draft.code = ResponseCode::NXDomain;
                draft.authorities.push(soa(zone, &name)?);
                return Ok(Followed::Here(draft));
            }
            Answer::NoData => {
                draft.authorities.push(soa(zone, &name)?);
                return Ok(Followed::Here(draft));
            }
            Answer::Data(data) => {
                draft.truncated = data.total > data.records.len();
                let records = data.records.into_iter().map(|it| Record::from_rdata(name.clone(), data.ttl, it));
                draft.answers.extend(records);
                let address = |(name, address)| Record::from_rdata(name, TTL, RData::from(address));
                draft.additionals = data.additional.into_iter().map(address).collect();
                return Ok(Followed::Here(draft));
            }
            Answer::Alias(target) => {
                draft.answers.push(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
                name = target;
            }
        }
    }
    // The chain is too long, or a circle.
    draft.code = ResponseCode::ServFail;
    Ok(Followed::Here(draft))
}

/// The SOA of the cluster domain, or of a reverse name by itself.
fn soa(zone: &Zone, name: &Name) -> Result<Record, ProtoError> {
    let owner = if zone.domain().zone_of(name) { zone.domain().clone() } else { name.clone() };
    Ok(Record::from_rdata(owner, TTL, RData::SOA(zone.soa()?)))
}

/// The answer to a question that a resolver answered `age` seconds ago, or did not.
pub fn forwarded(forward: Forward, answer: Result<&Message, ResponseCode>, age: u32) -> Step {
    let Forward { question, query: _, aliases } = forward;
    let upstream = match answer {
        Ok(upstream) => upstream,
        Err(code) => return question.finish(Draft { code, answers: aliases, ..Draft::default() }),
    };
    let older = |records: &[Record]| -> Vec<Record> {
        let older = |record: &Record| {
            let mut record = record.clone();
            record.decrement_ttl(age);
            record
        };
        records.iter().map(older).collect()
    };
    let mut message = question.head(upstream.metadata.response_code);
    message.metadata.authentic_data =
        upstream.metadata.authentic_data && aliases.is_empty() && (question.dnssec_ok || question.authentic_data);
    // The flag speaks of the first name.
    message.metadata.authoritative = !aliases.is_empty();
    message.answers = aliases;
    message.answers.extend(older(&upstream.answers));
    message.authorities = older(&upstream.authorities);
    message.additionals = older(&upstream.additionals);
    let code = message.metadata.response_code;
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= question.room => Step::Done(bytes, code),
        Ok(_) => question.truncated().map_or_else(|_| question.fail(ResponseCode::ServFail), |it| Step::Done(it, code)),
        Err(_) => question.fail(ResponseCode::ServFail),
    }
}

impl Question {
    /// An answer without anything in it that says: ask again over TCP.
    pub fn truncated(&self) -> Result<Vec<u8>, ProtoError> {
        self.encode(Draft { truncated: true, ..Draft::default() })
    }

    /// An answer that only has a code.
    pub fn fail(&self, code: ResponseCode) -> Step {
        self.finish(Draft { code, ..Draft::default() })
    }

    fn finish(&self, draft: Draft) -> Step {
        let code = draft.code;
        match self.encode(draft) {
            Ok(bytes) => Step::Done(bytes, code),
            // What cannot be encoded has no better description.
            Err(_) => Step::Done(Vec::new(), ResponseCode::ServFail),
        }
    }

    fn head(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MOST).set_dnssec_ok(self.dnssec_ok).set_version(0);
            message.set_edns(edns);
        }
        message
    }

    /// Encodes as much of a draft as there is room for.
    fn encode(&self, draft: Draft) -> Result<Vec<u8>, ProtoError> {
        let mut message = self.head(draft.code);
        let name = self.query.name();
        let mut left = self.room.saturating_sub(HEADER + length(name) + 4 + if self.edns { OPT } else { 0 });
        let mut fits = |record: &Record| -> Result<bool, ProtoError> {
            let size = size(record, name)?;
            let rest = left.checked_sub(size);
            left = rest.unwrap_or(left);
            Ok(rest.is_some())
        };
        message.metadata.truncation = draft.truncated;
        for record in draft.answers {
            if !fits(&record)? {
                message.metadata.truncation = true;
                break;
            }
            message.answers.push(record);
        }
        for record in draft.authorities {
            if fits(&record)? {
                message.authorities.push(record);
            }
        }
        for record in draft.additionals {
            if !fits(&record)? {
                break;
            }
            message.additionals.push(record);
        }
        message.metadata.authoritative = draft.authoritative;
        if message.authorities.is_empty() && message.additionals.is_empty() {
            let addresses = std::mem::take(&mut message.answers);
            match self.with_addresses(&message, &addresses)? {
                Some(bytes) => return Ok(bytes),
                None => message.answers = addresses,
            }
        }
        message.to_vec()
    }

    /// Writes addresses of the name that was asked for behind the question; `None`: these records are others.
    ///
    /// hickory refers to names written before for the first thousand or so only, and then writes them out: of the
    /// endpoints that fit into 64 KiB, it takes half.
    fn with_addresses(&self, head: &Message, records: &[Record]) -> Result<Option<Vec<u8>>, ProtoError> {
        let edns = head.edns.as_ref();
        let mut bytes = {
            let mut bare = head.clone();
            bare.edns = None;
            bare.to_vec()?
        };
        for record in records {
            if record.name != *self.query.name() {
                return Ok(None);
            }
            bytes.extend(TO_QUESTION.to_be_bytes());
            bytes.extend(u16::from(record.record_type()).to_be_bytes());
            bytes.extend(u16::from(record.dns_class).to_be_bytes());
            bytes.extend(record.ttl.to_be_bytes());
            match record.data {
                RData::A(A(address)) => {
                    bytes.extend(4_u16.to_be_bytes());
                    bytes.extend(address.octets());
                }
                RData::AAAA(AAAA(address)) => {
                    bytes.extend(16_u16.to_be_bytes());
                    bytes.extend(address.octets());
                }
                _ => return Ok(None),
            }
        }
        if let Some(edns) = edns {
            let mut edns = edns.clone();
            edns.set_rcode_high(head.metadata.response_code.high());
            bytes.extend(Record::from(&edns).to_bytes()?);
        }
        // Counts of answers and of additional records, in the header.
        let counts = [(6, records.len()), (10, usize::from(edns.is_some()))];
        for (at, count) in counts {
            if let (Some(place), Ok(count)) = (bytes.get_mut(at..at + 2), u16::try_from(count)) {
                place.copy_from_slice(&count.to_be_bytes());
            }
        }
        Ok(Some(bytes))
    }
}

/// Bytes of a name that is written out: hickory counts all but the root's.
fn length(name: &Name) -> usize {
    name.len() + 1
}

/// Most bytes that a record takes, with the name that was asked for written before.
fn size(record: &Record, asked: &Name) -> Result<usize, ProtoError> {
    let name = if record.name == *asked { POINTER } else { length(&record.name) };
    let data = match &record.data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::SRV(srv) => 6 + length(&srv.target),
        RData::CNAME(CNAME(name)) => length(name),
        other => other.to_bytes()?.len(),
    };
    Ok(name + FIXED + data)
}
