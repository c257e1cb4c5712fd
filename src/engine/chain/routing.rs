//! Which route a request takes, by one spelling of what means the same.

use super::{Action, CLUSTER_HEADER, Context, Exchange};
use crate::base::headers::{HeaderMap, Kept};
use crate::document::PathParameters;
use crate::engine::Engine;
use crate::host::{Host, Message, Stream};
use crate::request::{Request, without_parameters};
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
        let kept = unified.as_ref().map(|map| Kept::new(map, engine.watched));
        let mut request = kept
            .as_ref()
            .map_or(request, |kept| Request::new(kept.headers()));
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
        self.start = host.monotonic();
        self.whole = (end || !engine.tells_ends).then_some(self.start);
        self.route = Some(Rc::clone(route));
        let context = Context::new(&engine, route, host, stream);
        self.run(&context, request, end)
    }
}
