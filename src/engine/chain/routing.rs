//! Which route a request takes, by one spelling of what means the same.

use super::{Action, CLUSTER_HEADER, Context, Exchange};
use crate::base::headers::{HeaderMap, Headers, Kept};
use crate::document::PathParameters;
use crate::engine::Engine;
use crate::engine::single::Seen;
use crate::host::{Host, Message, Reply, Stream};
use crate::request::{Request, reply, without_parameters};
use std::rc::Rc;

impl Engine {
    /// The headers of a request; none where nobody looks at them.
    pub(super) fn request_headers<S: Stream>(&self, stream: &S) -> HeaderMap {
        if self.blind {
            HeaderMap::default()
        } else {
            stream.headers(Message::Request)
        }
    }

    /// The request that has these headers.
    pub(super) fn request<'a>(&self, headers: Headers<'a>) -> Request<'a> {
        let request = Request::new(headers);
        if self.kind.shows_authority() {
            return request;
        }
        Request {
            authority: headers.get("host"),
            ..request
        }
    }

    /// Removes the headers that only haven and the proxy may set, and notes what stands twice.
    pub(super) fn read<S: Stream>(&self, headers: Headers<'_>, stream: &S) -> Seen {
        let mut seen = Seen::default();
        for (name, value) in headers.watched() {
            // Found in the copy: only a request that has one pays for the call that removes it.
            if let Some((at, reserved)) = self.reserved_headers.entry(name) {
                seen.note_reserved(at);
                stream.remove_header(Message::Request, reserved);
            }
            self.single.note(name, value, &mut seen);
        }
        seen
    }

    /// The answer to a request that this proxy can't show as the upstream gets it; `None`: it can.
    pub(super) fn unreadable(&self, headers: &HeaderMap, seen: Seen) -> Option<Reply> {
        if seen.repeated && !self.kind.sets_repeated() {
            let why = "a header that may stand once stands twice";
            return Some(reply::unreadable(400, why));
        }
        let hidden = headers.said() >= self.kind.most_headers();
        hidden.then(|| reply::unreadable(431, "there are too many headers"))
    }
}

impl Exchange {
    /// Finds the route of a request and runs its chain. `twice`: a header that has one reading may
    /// stand there twice.
    pub(super) fn take_route<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        request: Request<'_>,
        twice: bool,
        end: bool,
    ) -> Action {
        let engine = Rc::clone(&self.engine);
        let unified = twice.then(|| engine.single.unify(request.headers.map(), stream));
        let mut kept;
        let mut request = match &unified {
            Some(map) => {
                kept = Kept::default();
                engine.request(kept.walk(map, &engine.watched))
            }
            None => request,
        };
        let plain;
        if engine.path_parameters == PathParameters::Strip && request.path.contains(&b';') {
            plain = without_parameters(request.path);
            request.path = &plain;
        }
        let route = |at: usize| engine.routes.get(at);
        let matcher = |at: usize| Some(&route(at)?.config.matcher);
        let found = engine
            .route_index
            .find(&request, &request.plain_path(), matcher);
        let Some(route) = found.and_then(route) else {
            return Action::Continue;
        };
        // Whatever is off: without it the proxy knows no way.
        if let Some(cluster) = &route.cluster {
            stream.set_header(Message::Request, CLUSTER_HEADER, cluster.as_bytes());
        }
        if route.off {
            return Action::Continue;
        }
        self.start = engine.now(host);
        self.whole = (end || !engine.kind.tells_ends()).then_some(self.start);
        self.route = Some(Rc::clone(route));
        let context = Context::new(&engine, route, host, stream);
        self.run(&context, request, end)
    }
}
