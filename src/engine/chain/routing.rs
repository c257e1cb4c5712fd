//! Which route a request takes, by one spelling of what means the same.

use super::{Action, CLUSTER_HEADER, Context, Exchange};
use crate::base::headers::HeaderMap;
use crate::document::PathParameters;
use crate::host::{Host, Message, Stream};
use crate::policy::route;
use crate::request::{Request, without_parameters};
use std::rc::Rc;

impl Exchange {
    /// Finds the route of a request and runs its chain. `headers`: all of them, and whether one that
    /// has one reading may stand there twice.
    pub(super) fn take_route<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        (headers, twice): (&HeaderMap, bool),
        request: Request<'_>,
        end: bool,
    ) -> Action {
        let engine = Rc::clone(&self.engine);
        let unified = twice.then(|| engine.single.unify(headers, stream));
        let headers = unified.as_ref().unwrap_or(headers);
        let mut request = if twice {
            Request::new(headers)
        } else {
            request
        };
        let plain;
        if engine.path_parameters == PathParameters::Strip && request.path.contains(&b';') {
            plain = without_parameters(request.path);
            request.path = &plain;
        }
        let (mut routes, path) = (engine.routes.iter(), request.plain_path());
        let Some(route) =
            routes.find(|route| route::matches(&route.config.matcher, &request, &path))
        else {
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
        self.run(&context, request, headers, end)
    }
}
