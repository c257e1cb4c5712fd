//! Envoy's bootstrap, written for a test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Reserved, checkout, haven_wasm};

/// The labels that metrics of haven carry: `haven_x;route=users;mode=enforce`. The same list stands
/// in `envoy.yaml`.
pub const LABELS: [&str; 14] = [
    "route",
    "policy",
    "reason",
    "mode",
    "circuit_breaker",
    "key",
    "cause",
    "to",
    "upstream",
    "endpoint",
    "step",
    "switch",
    "result",
    "state",
];

/// The request header that names the endpoints to try, unless a test says otherwise.
pub const OVERRIDE_HEADER: &str = "x-haven-upstream";

/// Endpoints of the three demo upstreams in `envoy.yaml`.
const REFERENCE_ENDPOINTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];

/// Any free port.
const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How Envoy shows haven exceptions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceptions {
    /// By a matcher around the filter and an access log, as in docs/cost.md.
    Wired,
    /// Without the access log.
    Half,
}

/// An Envoy to start.
#[derive(Clone, Debug)]
pub struct EnvoyConfig {
    filter: Option<String>,
    routes: Vec<Route>,
    clusters: Vec<Cluster>,
    lds: bool,
    use_remote_address: bool,
    xff_num_trusted_hops: u32,
    internal_clients: bool,
    filters_before: Vec<Value>,
    filters_after: Vec<Value>,
    beside: Vec<Self>,
    manager: Value,
    runtime: Value,
    wasm: Option<String>,
    variables: BTreeMap<String, String>,
    stop_all: bool,
    attempt_counts: bool,
    exceptions: Option<Exceptions>,
    balanced: bool,
    at: Option<Arc<Reserved>>,
    admin: Option<Arc<Reserved>>,
    text: Option<String>,
    pub(super) concurrency: u32,
    pub(super) drain_seconds: u32,
    pub(super) args: Vec<String>,
}

impl Default for EnvoyConfig {
    fn default() -> Self {
        Self {
            filter: None,
            routes: Vec::new(),
            clusters: Vec::new(),
            lds: false,
            use_remote_address: true,
            xff_num_trusted_hops: 0,
            internal_clients: false,
            filters_before: Vec::new(),
            filters_after: Vec::new(),
            beside: Vec::new(),
            manager: json!({}),
            runtime: json!({}),
            wasm: None,
            variables: BTreeMap::new(),
            stop_all: false,
            attempt_counts: false,
            exceptions: None,
            balanced: false,
            at: None,
            admin: None,
            text: None,
            concurrency: 4,
            drain_seconds: 600,
            args: Vec::new(),
        }
    }
}

impl EnvoyConfig {
    /// An Envoy that answers everything by itself: 200 `ok`.
    pub fn direct() -> Self {
        Self::default().route(Route::direct("/", 200, "ok"))
    }

    /// An Envoy that proxies everything to the cluster `users` of these endpoints.
    pub fn proxy(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::default()
            .cluster(Cluster::new("users", endpoints))
            .route(Route::to("/", "users"))
    }

    /// An Envoy without routes or clusters, to be filled.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The reference `envoy.yaml` with these endpoints in place of its own (three), on free
    /// loopback ports.
    pub fn reference(endpoints: &[SocketAddr]) -> Self {
        let path = checkout("envoy.yaml");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let wasm = haven_wasm().unwrap_or_else(|error| panic!("{error}"));
        Self {
            text: Some(reference_text(&text, endpoints, &wasm)),
            ..Self::default()
        }
    }

    /// A bootstrap as it stands (YAML or JSON), on the ports it names.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: Some(text.into()),
            ..Self::default()
        }
    }

    /// With haven in front of the router, and this as the filter's JSON.
    pub fn haven(self, filter: &Value) -> Self {
        self.haven_text(&filter.to_string())
    }

    /// As [`EnvoyConfig::haven`], with any text.
    pub fn haven_text(mut self, filter: &str) -> Self {
        self.filter = Some(filter.to_owned());
        self
    }

    /// With another wasm file than haven's.
    pub fn wasm(mut self, path: &Path) -> Self {
        self.wasm = Some(path.display().to_string());
        self
    }

    /// With a variable for haven, of the plugin's `vm_config.environment_variables`.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With a route more; the first that matches is taken.
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Without the routes so far.
    pub fn without_routes(mut self) -> Self {
        self.routes.clear();
        self
    }

    /// With a cluster more.
    pub fn cluster(mut self, cluster: Cluster) -> Self {
        self.clusters.push(cluster);
        self
    }

    /// With the plugin's `allow_on_headers_stop_iteration` off, Envoy's default: a pause at the
    /// headers holds a body back as well.
    pub fn stop_all(mut self) -> Self {
        self.stop_all = true;
        self
    }

    /// With `x-envoy-attempt-count` in what endpoints get and in what they answer.
    pub fn attempt_counts(mut self) -> Self {
        self.attempt_counts = true;
        self
    }

    /// With exceptions alone for haven, in place of every answer.
    pub fn exceptions(mut self, exceptions: Exceptions) -> Self {
        self.exceptions = Some(exceptions);
        self
    }

    /// With as many connections for each worker.
    pub fn balanced(mut self) -> Self {
        self.balanced = true;
        self
    }

    /// With the listener at this address.
    pub fn at(mut self, address: &Arc<Reserved>) -> Self {
        self.at = Some(Arc::clone(address));
        self
    }

    /// With a cluster `haven-admin`, which leads to the admin page.
    pub fn admin_cluster(mut self) -> Self {
        let admin = Arc::new(Reserved::new(Ipv4Addr::LOCALHOST.into()));
        let cluster = Cluster::new("haven-admin", [admin.addr]).plain();
        self.admin = Some(admin);
        self.cluster(cluster)
    }

    /// With haven as the endpoint discovery of these upstreams of the state `haven`, at a listener of
    /// its own.
    pub fn serves_endpoints(self, upstreams: &[&str]) -> Self {
        let at = Arc::new(Reserved::new(Ipv4Addr::LOCALHOST.into()));
        let listener = Self::empty()
            .haven(&json!({"serve_endpoints": true, "state": "haven"}))
            .at(&at);
        upstreams.iter().fold(self.listener(&listener), |it, name| {
            let name = format!("{name}.haven-eds");
            it.cluster(Cluster::new(&name, [at.addr]).plain().http2())
        })
    }

    /// With the listener read from a file that Envoy watches: see
    /// [`super::Envoy::update_filter_config`].
    pub fn lds(mut self) -> Self {
        self.lds = true;
        self
    }

    /// The number of workers; 4 if not said.
    pub fn concurrency(mut self, workers: u32) -> Self {
        self.concurrency = workers;
        self
    }

    /// Seconds for which old listeners drain; 600, Envoy's default, if not said.
    pub fn drain_seconds(mut self, seconds: u32) -> Self {
        self.drain_seconds = seconds;
        self
    }

    /// Whether the peer's address is the client's and is appended to `x-forwarded-for`; true if not
    /// said.
    pub fn use_remote_address(mut self, yes: bool) -> Self {
        self.use_remote_address = yes;
        self
    }

    /// How many proxies in front are trusted to write `x-forwarded-for`; 0 if not said.
    pub fn xff_num_trusted_hops(mut self, hops: u32) -> Self {
        self.xff_num_trusted_hops = hops;
        self
    }

    /// With clients on the loopback taken for internal: Envoy keeps what others of its kind have
    /// written into their requests.
    pub fn internal_clients(mut self) -> Self {
        self.internal_clients = true;
        self
    }

    /// With an HTTP filter in front of haven.
    pub fn filter_before(mut self, filter: Value) -> Self {
        self.filters_before.push(filter);
        self
    }

    /// With an HTTP filter between haven and the router.
    pub fn filter_after(mut self, filter: Value) -> Self {
        self.filters_after.push(filter);
        self
    }

    /// With a second listener in the same process: that of another configuration, whose clusters
    /// are to be among these.
    pub fn listener(mut self, other: &Self) -> Self {
        self.beside.push(other.clone());
        self
    }

    /// With more arguments on Envoy's command line.
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// With more fields of Envoy's `HttpConnectionManager`.
    pub fn manager(mut self, fields: &Value) -> Self {
        merge(&mut self.manager, fields);
        self
    }

    /// With these values of Envoy's runtime.
    pub fn runtime(mut self, values: &Value) -> Self {
        merge(&mut self.runtime, values);
        self
    }

    /// The bootstrap; a discovered listener is to be in `lds`.
    pub(super) fn bootstrap(&self, lds: &Path) -> Result<String, String> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let listeners = if self.lds {
            vec![]
        } else {
            let mut listeners = vec![self.own_listener()?];
            for (number, other) in self.beside.iter().enumerate() {
                let mut listener = other.own_listener()?;
                listener["name"] = json!(format!("beside-{number}"));
                listeners.push(listener);
            }
            listeners
        };
        let clusters: Vec<Value> = self.clusters.iter().map(Cluster::to_json).collect();
        let tags: Vec<Value> = LABELS
            .iter()
            .map(|label| json!({"tag_name": label, "regex": label_regex(label)}))
            .collect();
        let mut bootstrap = json!({
            "node": {"id": "haven-test", "cluster": "haven-test"},
            "admin": {"address": socket_address(self.admin.as_ref().map_or(FREE, |it| it.addr))},
            "stats_config": {"stats_tags": tags},
            "static_resources": {"listeners": listeners, "clusters": clusters},
            "layered_runtime": {"layers": [{"name": "test", "static_layer": self.runtime}]},
        });
        if self.lds {
            let source = json!({"resource_api_version": "V3", "path_config_source": {"path": lds}});
            bootstrap["dynamic_resources"] = json!({"lds_config": source});
        }
        Ok(bootstrap.to_string())
    }

    /// The document of the listener's discovery; `None` if the listener is static.
    pub(super) fn discovery(&self, version: u64) -> Result<Option<String>, String> {
        if !self.lds || self.text.is_some() {
            return Ok(None);
        }
        let mut listener = self.own_listener()?;
        listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        Ok(Some(
            json!({"version_info": version.to_string(), "resources": [listener]}).to_string(),
        ))
    }

    pub(super) fn is_discovered(&self) -> bool {
        self.lds
    }

    fn own_listener(&self) -> Result<Value, String> {
        let mut filters = self.filters_before.clone();
        let mut logs = vec![access_log()];
        if let Some(filter) = &self.filter {
            let wasm = match &self.wasm {
                Some(wasm) => wasm.clone(),
                None => haven_wasm()?.display().to_string(),
            };
            let mut filter = haven_filter(&wasm, filter, self.stop_all);
            if !self.variables.is_empty() {
                filter["typed_config"]["config"]["vm_config"]["environment_variables"] =
                    json!({"key_values": self.variables});
            }
            if self.exceptions == Some(Exceptions::Wired) {
                logs.push(exceptions_log(&filter));
            }
            filters.push(match self.exceptions {
                Some(_) => only_exceptions(filter),
                None => filter,
            });
        }
        filters.extend(self.filters_after.iter().cloned());
        filters.push(json!({
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }));
        let routes: Vec<Value> = self.routes.iter().map(Route::to_json).collect();
        let mut manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "ingress",
            "codec_type": "AUTO",
            "use_remote_address": self.use_remote_address,
            "xff_num_trusted_hops": self.xff_num_trusted_hops,
            "http2_protocol_options": {"max_concurrent_streams": 1000},
            "access_log": logs,
            "http_filters": filters,
            "route_config": {"name": "routes", "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": routes,
                "include_request_attempt_count": self.attempt_counts || self.exceptions.is_some(),
                "include_attempt_count_in_response": self.attempt_counts,
            }]},
        });
        merge(&mut manager, &self.manager);
        if self.internal_clients {
            let loopback = json!([{"address_prefix": "127.0.0.0", "prefix_len": 8}]);
            manager["internal_address_config"] = json!({"cidr_ranges": loopback});
        }
        let mut listener = json!({
            "name": "haven",
            "address": socket_address(self.at.as_ref().map_or(FREE, |it| it.addr)),
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
        });
        if self.balanced {
            listener["connection_balance_config"] = json!({"exact_balance": {}});
        }
        Ok(listener)
    }
}

/// What Envoy does with a path.
#[derive(Clone, Debug)]
pub struct Route {
    prefix: String,
    header: Option<String>,
    action: Value,
    cluster: bool,
}

impl Route {
    /// Answers by itself.
    pub fn direct(prefix: &str, status: u16, body: &str) -> Self {
        let action = json!({"status": status, "body": {"inline_string": body}});
        Self {
            prefix: prefix.to_owned(),
            header: None,
            action,
            cluster: false,
        }
    }

    /// Proxies to a cluster.
    pub fn to(prefix: &str, cluster: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            header: None,
            action: json!({"cluster": cluster}),
            cluster: true,
        }
    }

    /// Proxies to the cluster that a request header names.
    pub fn to_named_by(prefix: &str, header: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            header: None,
            action: json!({"cluster_header": header}),
            cluster: true,
        }
    }

    /// Only for requests that have this header.
    pub fn having(mut self, header: &str) -> Self {
        self.header = Some(header.to_owned());
        self
    }

    /// The whole request's timeout; Envoy's default is 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        assert!(self.cluster, "a direct response has no timeout");
        self.action["timeout"] = seconds(timeout);
        self
    }

    /// With more fields of Envoy's `RouteAction`.
    pub fn with(mut self, fields: &Value) -> Self {
        assert!(self.cluster, "a direct response has no action");
        merge(&mut self.action, fields);
        self
    }

    /// With retries.
    pub fn retry(mut self, retry: &Retry) -> Self {
        assert!(self.cluster, "a direct response is not retried");
        self.action["retry_policy"] = retry.to_json();
        self
    }

    fn to_json(&self) -> Value {
        let action = if self.cluster {
            "route"
        } else {
            "direct_response"
        };
        let mut matched = json!({"prefix": self.prefix});
        if let Some(header) = &self.header {
            matched["headers"] = json!([{"name": header, "present_match": true}]);
        }
        json!({"match": matched, action: self.action})
    }
}

/// Envoy's retries.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Envoy's words.
    pub on: String,
    /// Retries after the first try.
    pub num_retries: u32,
    /// Timeout of a try.
    pub per_try_timeout: Option<Duration>,
    /// Skips hosts that were tried before.
    pub previous_hosts: bool,
    /// The least and the most time before a retry, roughly; Envoy's own if not said.
    pub back_off: Option<[Duration; 2]>,
}

impl Default for Retry {
    fn default() -> Self {
        let on = "connect-failure,refused-stream,reset,gateway-error".to_owned();
        Self {
            on,
            num_retries: 2,
            per_try_timeout: None,
            previous_hosts: true,
            back_off: None,
        }
    }
}

impl Retry {
    fn to_json(&self) -> Value {
        let mut policy = json!({"retry_on": self.on, "num_retries": self.num_retries});
        if let Some(timeout) = self.per_try_timeout {
            policy["per_try_timeout"] = seconds(timeout);
        }
        if let Some([least, most]) = self.back_off {
            policy["retry_back_off"] =
                json!({"base_interval": seconds(least), "max_interval": seconds(most)});
        }
        if self.previous_hosts {
            let kind = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
            policy["retry_host_predicate"] = json!([{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind}}]);
            policy["host_selection_retry_max_attempts"] = json!(32);
        }
        policy
    }
}

/// A cluster of static endpoints that obeys the override header, else round robin.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    endpoints: Vec<SocketAddr>,
    http2: bool,
    override_header: Option<String>,
    own_choice: &'static str,
    header_reaches_upstream: bool,
    connect_timeout: Duration,
    extra: Value,
}

impl Cluster {
    /// One of these endpoints, obeying [`OVERRIDE_HEADER`], which the endpoints never see.
    pub fn new(name: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            name: name.to_owned(),
            endpoints: endpoints.into_iter().collect(),
            http2: false,
            override_header: Some(OVERRIDE_HEADER.to_owned()),
            own_choice: "RoundRobin",
            header_reaches_upstream: false,
            connect_timeout: Duration::from_secs(1),
            extra: json!({}),
        }
    }

    /// With the endpoints that haven serves: see [`EnvoyConfig::serves_endpoints`].
    pub fn served(name: &str, refresh: Duration) -> Self {
        Self::new(name, []).with(&json!({
            "type": "EDS",
            "load_assignment": null,
            "eds_cluster_config": {"eds_config": {
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0.05s",
                "api_config_source": {
                    "api_type": "REST",
                    "transport_api_version": "V3",
                    "cluster_names": [format!("{name}.haven-eds")],
                    "refresh_delay": seconds(refresh),
                },
            }},
        }))
    }

    /// Spoken to in HTTP/2.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Obeying another header.
    pub fn override_header(mut self, name: &str) -> Self {
        self.override_header = Some(name.to_owned());
        self
    }

    /// With Envoy's own least_request where no header says what to pick.
    pub fn least_request(mut self) -> Self {
        self.own_choice = "LeastRequest";
        self
    }

    /// Obeying no header: Envoy's own choice alone.
    pub fn plain(mut self) -> Self {
        self.override_header = None;
        self
    }

    /// Lets the override header through, so that `/echo` shows it.
    pub fn show_override_header(mut self) -> Self {
        self.header_reaches_upstream = true;
        self
    }

    /// Time to connect; 1 s if not said.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// With more fields of Envoy's `Cluster`, or others in place of these.
    pub fn with(mut self, fields: &Value) -> Self {
        merge(&mut self.extra, fields);
        self
    }

    fn to_json(&self) -> Value {
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|addr| json!({"endpoint": {"address": socket_address(*addr)}}))
            .collect();
        let version = if self.http2 {
            "http2_protocol_options"
        } else {
            "http_protocol_options"
        };
        let mut options = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {version: {}},
        });
        // Envoy's own bounds (1024) would answer 503 in a test of load.
        let bounds = json!({
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 1000,
        });
        let mut cluster = json!({
            "name": self.name,
            "type": "STATIC",
            "connect_timeout": seconds(self.connect_timeout),
            "circuit_breakers": {"thresholds": [bounds]},
            "load_assignment": {"cluster_name": self.name, "endpoints": [{"lb_endpoints": endpoints}]},
        });
        let own = own_choice(self.own_choice);
        if let Some(header) = &self.override_header {
            cluster["load_balancing_policy"] = override_host(header, &own);
            if !self.header_reaches_upstream {
                options["http_filters"] = upstream_filters(header);
            }
        } else {
            cluster["load_balancing_policy"] = own;
        }
        cluster["typed_extension_protocol_options"] =
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
        merge(&mut cluster, &self.extra);
        cluster
    }
}

/// An address in Envoy's form.
pub fn socket_address(addr: SocketAddr) -> Value {
    json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}})
}

/// A duration in Envoy's form: it knows no unit but seconds.
pub fn seconds(duration: Duration) -> Value {
    json!(format!(
        "{}.{:09}s",
        duration.as_secs(),
        duration.subsec_nanos()
    ))
}

/// Takes `;label=value` out of a metric's name and makes it a label.
pub fn label_regex(label: &str) -> String {
    format!("(;{label}=([^;]*))")
}

/// Sets these fields, in place of those that are there.
fn merge(into: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().expect("an object of fields") {
        into[name] = value.clone();
    }
}

pub fn haven_filter(wasm: &str, filter: &str, stop_all: bool) -> Value {
    json!({
        "name": "haven",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": "haven",
                "root_id": "haven",
                "failure_policy": "FAIL_RELOAD",
                "allow_on_headers_stop_iteration": !stop_all,
                "vm_config": {
                    "vm_id": "haven",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": wasm}},
                },
                "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": filter},
            },
        },
    })
}

/// The filter, left out of answers of status 2xx to 4xx but for gRPC.
fn only_exceptions(filter: Value) -> Value {
    let input = |name: &str, header: &str| {
        let input = format!("type.googleapis.com/envoy.type.matcher.v3.{name}");
        json!({"name": header, "typed_config": {"@type": input, "header_name": header}})
    };
    let skip = json!({"action": {"name": "skip", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter"}}});
    let by_status = json!({"matcher_tree": {
        "input": input("HttpResponseHeaderMatchInput", ":status"),
        "prefix_match_map": {"map": {"2": skip, "3": skip, "4": skip}}}});
    let is_grpc = json!({"single_predicate": {
        "input": input("HttpRequestHeaderMatchInput", "content-type"),
        "value_match": {"prefix": "application/grpc"}}});
    json!({
        "name": "haven",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": filter,
            "xds_matcher": {"matcher_list": {"matchers": [
                {"predicate": {"not_matcher": is_grpc}, "on_match": {"matcher": by_status}}]}},
        },
    })
}

/// The access log that reports exceptions to the filter.
fn exceptions_log(filter: &Value) -> Value {
    json!({
        "name": "haven",
        "filter": {"or_filter": {"filters": [
            {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "haven.failures"}}}},
            {"response_flag_filter": {}},
            {"header_filter": {"header": {"name": "x-envoy-attempt-count", "string_match": {"exact": "1"},
                "invert_match": true, "treat_missing_header_as_empty": true}}},
        ]}},
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog",
            "config": filter["typed_config"]["config"],
        },
    })
}

/// One of Envoy's own policies, by the name of its message.
fn own_choice(message: &str) -> Value {
    let name = match message {
        "LeastRequest" => "least_request",
        _ => "round_robin",
    };
    let kind =
        format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{message}");
    json!({"policies": [{"typed_extension_config": {
        "name": format!("envoy.load_balancing_policies.{name}"),
        "typed_config": {"@type": kind},
    }}]})
}

fn override_host(header: &str, own: &Value) -> Value {
    json!({"policies": [{"typed_extension_config": {
        "name": "envoy.load_balancing_policies.override_host",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
            "override_host_sources": [{"header": header}],
            "fallback_policy": own,
        },
    }}]})
}

/// Removes the override header once the endpoint is picked: earlier, and it would not be obeyed.
fn upstream_filters(header: &str) -> Value {
    json!([
        {
            "name": "envoy.filters.http.header_mutation",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"request_mutations": [{"remove": header}]},
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"},
        },
    ])
}

/// A line of JSON per request on stdout, as `envoy.yaml` has it.
fn access_log() -> Value {
    json!({
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": {
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(:PATH)%",
                "protocol": "%PROTOCOL%",
                "status": "%RESPONSE_CODE%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "flags": "%RESPONSE_FLAGS%",
                "upstream": "%UPSTREAM_HOST%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "duration_ms": "%DURATION%",
                "decision": "%FILTER_STATE(wasm.haven.decision:PLAIN)%",
            }},
        },
    })
}

/// `envoy.yaml` with other endpoints and another wasm file, on free loopback ports. Panics when the
/// file has lost a place that is to be replaced.
pub fn reference_text(text: &str, endpoints: &[SocketAddr], wasm: &Path) -> String {
    assert_eq!(
        endpoints.len(),
        REFERENCE_ENDPOINTS.len(),
        "envoy.yaml has three endpoints"
    );
    let mut text = text.to_owned();
    let mut replace = |from: &str, to: &str| {
        assert!(
            text.contains(from),
            "envoy.yaml has no {from:?} any more: change tests/support/config.rs with it"
        );
        text = text.replace(from, to);
    };
    for (ip, addr) in REFERENCE_ENDPOINTS.iter().zip(endpoints) {
        let socket = format!("address: {}, port_value: {}", addr.ip(), addr.port());
        replace(&format!("address: {ip}, port_value: 8080"), &socket);
        replace(&format!("{ip}:8080"), &addr.to_string());
    }
    replace(
        "address: 0.0.0.0, port_value: 10000",
        "address: 127.0.0.1, port_value: 0",
    );
    replace(
        "address: 127.0.0.1, port_value: 9901",
        "address: 127.0.0.1, port_value: 0",
    );
    replace("dist/haven.wasm", &wasm.display().to_string());
    text
}
