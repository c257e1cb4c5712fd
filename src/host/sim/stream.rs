//! A simulated HTTP exchange, with a client and an upstream that the test plays.

use crate::base::headers::HeaderMap;
use crate::host::{HostKind, Message, Property, Reply, Stream};
use std::cell::RefCell;

/// A simulated HTTP exchange.
#[derive(Debug, Default)]
pub struct SimStream {
    kind: HostKind,
    request: RefCell<Vec<(String, Vec<u8>)>>,
    response: RefCell<Vec<(String, Vec<u8>)>>,
    trailers: RefCell<Vec<(String, Vec<u8>)>>,
    body: RefCell<Vec<u8>>,
    request_body: RefCell<Vec<u8>>,
    properties: RefCell<Vec<(&'static str, Vec<u8>)>>,
    state: RefCell<Vec<(String, Vec<u8>)>>,
    reply: RefCell<Option<Reply>>,
    asked: RefCell<Vec<Property>>,
}

impl SimStream {
    /// How often the filter read a property.
    #[must_use]
    pub fn asked(&self, property: Property) -> usize {
        self.asked
            .borrow()
            .iter()
            .filter(|asked| **asked == property)
            .count()
    }

    /// A request from 192.0.2.1.
    #[must_use]
    pub fn request(method: &str, path: &str, headers: &[(&str, &[u8])]) -> Self {
        let stream = Self::default();
        stream.set_property(Property::SourceAddress, b"192.0.2.1:40000");
        let mut request = stream.request.borrow_mut();
        request.push((":method".to_owned(), method.as_bytes().to_vec()));
        request.push((":path".to_owned(), path.as_bytes().to_vec()));
        request.push((":authority".to_owned(), b"api.example".to_vec()));
        request.extend(headers.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())));
        drop(request);
        stream
    }

    /// The same on this proxy. nginx shows what the client has asked for as `host`.
    #[must_use]
    pub fn on(self, kind: HostKind) -> Self {
        if !kind.shows_authority() {
            let mut request = self.request.borrow_mut();
            let host = |name: &String| name == "host";
            if !request.iter().any(|(name, _)| host(name)) {
                request.push(("host".to_owned(), b"api.example".to_vec()));
            }
        }
        Self { kind, ..self }
    }

    /// What nginx ends a worker over, or does otherwise than it is told.
    fn survives(&self, does: bool, what: &str) {
        assert!(does || self.kind == HostKind::Envoy, "nginx: {what}");
    }

    /// Lets the upstream at `address` answer, after as many tries as a proxy makes that follows the
    /// list.
    pub fn answer(&self, status: u16, address: Option<&str>, headers: &[(&str, &[u8])]) {
        let mut response = self.response.borrow_mut();
        response.clear();
        response.push((":status".to_owned(), status.to_string().into_bytes()));
        response.extend(headers.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())));
        drop(response);
        self.set_property(Property::ResponseCodeDetails, b"via_upstream");
        if let Some(address) = address {
            self.set_property(Property::UpstreamAddress, address.as_bytes());
            let list = self.request_header("x-haven-upstream").unwrap_or_default();
            let place = list.split(',').position(|listed| listed == address);
            let count = place.unwrap_or(0).saturating_add(1) as u64;
            self.set_property(Property::AttemptCount, &count.to_le_bytes());
        }
    }

    /// Brings a piece of the request's body, which the host buffers with what came before.
    pub fn send(&self, piece: &[u8]) {
        self.request_body.borrow_mut().extend_from_slice(piece);
    }

    /// Brings a piece of the answer's body.
    pub fn piece(&self, piece: &[u8]) {
        *self.body.borrow_mut() = piece.to_vec();
    }

    /// Ends the answer with trailers.
    pub fn trail(&self, trailers: &[(&str, &[u8])]) {
        *self.trailers.borrow_mut() = trailers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), v.to_vec()))
            .collect();
    }

    /// Lets the proxy answer because the upstream failed.
    pub fn fail(&self, status: u16, details: &str, address: Option<&str>, attempts: u64) {
        self.answer(status, address, &[]);
        self.set_property(Property::ResponseCodeDetails, details.as_bytes());
        self.set_property(Property::AttemptCount, &attempts.to_le_bytes());
    }

    /// Sets a property.
    pub fn set_property(&self, property: Property, value: &[u8]) {
        let mut properties = self.properties.borrow_mut();
        properties.retain(|(path, _)| *path != property.path());
        properties.push((property.path(), value.to_vec()));
    }

    /// A request header as the upstream would see it.
    #[must_use]
    pub fn request_header(&self, name: &str) -> Option<String> {
        header(&self.request.borrow(), name)
    }

    /// All lines of a request header as the upstream would see them.
    #[must_use]
    pub fn request_headers(&self, name: &str) -> Vec<String> {
        let request = self.request.borrow();
        let lines = request.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        lines
            .map(|(_, v)| String::from_utf8_lossy(v).into_owned())
            .collect()
    }

    /// A response header as the client would see it.
    #[must_use]
    pub fn response_header(&self, name: &str) -> Option<String> {
        match &*self.reply.borrow() {
            Some(reply) => {
                let own = reply
                    .headers
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| v.as_slice());
                own.or_else(|| reply.kept_headers.get(name))
                    .map(|v| String::from_utf8_lossy(v).into_owned())
            }
            None => header(&self.response.borrow(), name),
        }
    }

    /// Status and body as the client gets them: of the filter's own reply, or of the answer, whose
    /// body is as the last callback of it has left it.
    #[must_use]
    pub fn sent(&self) -> (u16, Vec<u8>) {
        if let Some(reply) = self.replied() {
            return (reply.status, reply.body);
        }
        let status = header(&self.response.borrow(), ":status");
        let status = status.and_then(|status| status.parse().ok());
        (status.unwrap_or(0), self.body.borrow().clone())
    }

    /// A trailer as the client gets it.
    #[must_use]
    pub fn trailer(&self, name: &str) -> Option<String> {
        header(&self.trailers.borrow(), name)
    }

    /// What an access log shows of haven's decisions: the note on a request that went on, or the
    /// details of haven's reply, in the note's form.
    #[must_use]
    pub fn decision(&self) -> Option<String> {
        let reply = self.reply.borrow();
        let told = reply.as_ref().and_then(|reply| decision_of(&reply.details));
        let noted = self.state("haven.decision");
        assert!(
            noted.is_none() || told.is_none() || noted == told,
            "{noted:?} {told:?}"
        );
        noted.or(told)
    }

    /// A value of the filter state.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<String> {
        header(&self.state.borrow(), name)
    }

    /// The filter's own reply, if there was one.
    #[must_use]
    pub fn replied(&self) -> Option<Reply> {
        self.reply.borrow().clone()
    }

    fn pairs(&self, of: Message) -> &RefCell<Vec<(String, Vec<u8>)>> {
        match of {
            Message::Request => &self.request,
            Message::Response => &self.response,
            Message::ResponseTrailers => &self.trailers,
        }
    }
}

fn header(pairs: &[(String, Vec<u8>)], name: &str) -> Option<String> {
    pairs
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| String::from_utf8_lossy(v).into_owned())
}

impl Stream for SimStream {
    fn headers(&self, of: Message) -> HeaderMap {
        HeaderMap::from_pairs(&self.pairs(of).borrow())
    }

    fn set_headers(&self, of: Message, headers: &HeaderMap) {
        self.survives(false, "all headers are set");
        let pairs = headers.iter();
        *self.pairs(of).borrow_mut() = pairs
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
            .collect();
    }

    fn set_header(&self, of: Message, name: &str, value: &[u8]) {
        let mut pairs = self.pairs(of).borrow_mut();
        let lines = pairs.iter();
        let lines = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
        let once = of != Message::Request || lines < 2;
        // Of one that is refused for it nothing is sent on.
        if !once && self.kind == HostKind::Nginx {
            return;
        }
        pairs.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        pairs.push((name.to_owned(), value.to_vec()));
    }

    fn add_header(&self, of: Message, name: &str, value: &[u8]) {
        if self.kind == HostKind::Nginx && of == Message::Request {
            return self.set_header(of, name, value);
        }
        self.pairs(of)
            .borrow_mut()
            .push((name.to_owned(), value.to_vec()));
    }

    /// On nginx a request's header is emptied: who removes it there hides it from the filter alone.
    fn remove_header(&self, of: Message, name: &str) {
        if self.kind == HostKind::Nginx && of == Message::Request {
            return self.set_header(of, name, b"");
        }
        self.pairs(of)
            .borrow_mut()
            .retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        Some(self.body.borrow().iter().take(size).copied().collect())
    }

    fn replace_body(&self, size: usize, by: &[u8]) -> bool {
        let mut body = self.body.borrow_mut();
        let rest = body.get(size..).unwrap_or_default();
        *body = [by, rest].concat();
        true
    }

    fn request_body(&self, size: usize) -> Option<Vec<u8>> {
        Some(
            self.request_body
                .borrow()
                .iter()
                .take(size)
                .copied()
                .collect(),
        )
    }

    fn property(&self, property: Property) -> Option<Vec<u8>> {
        if !self.kind.tells(property) {
            return None;
        }
        self.asked.borrow_mut().push(property);
        self.properties
            .borrow()
            .iter()
            .find(|(path, _)| *path == property.path())
            .map(|(_, value)| value.clone())
    }

    fn set_state(&self, name: &str, value: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.retain(|(n, _)| n != name);
        state.push((name.to_owned(), value.to_vec()));
    }

    fn reply(&self, reply: &Reply) {
        let first = self.reply.borrow().is_none();
        self.survives(first, "a second reply");
        let answered = !self.response.borrow().is_empty();
        self.survives(!answered, "a reply in place of an answer keeps its headers");
        // Whole: who plays the client does not care which part was ready.
        let mut whole = reply.clone();
        if let Some(ready) = whole.ready.take() {
            whole.headers.splice(0..0, ready.headers.iter().cloned());
            whole.body.clone_from(&ready.body);
        }
        *self.reply.borrow_mut() = Some(whole);
    }
}

/// What a refusal's details say that was decided, in the form of the note.
#[must_use]
pub fn decision_of(details: &str) -> Option<String> {
    let told = details.strip_prefix("haven{")?.strip_suffix('}')?;
    let one = |one: &str| {
        let (reason, rest) = one.split_once(':').unwrap_or((one, ""));
        let (policy, mode) = rest.rsplit_once(':').unwrap_or((rest, ""));
        [reason, policy, mode].join(" ")
    };
    Some(told.split(',').map(one).collect::<Vec<_>>().join(","))
}
