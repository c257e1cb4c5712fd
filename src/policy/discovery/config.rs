//! Where the endpoints of an upstream come from, as it is configured.

use super::rules::Rules;
use crate::base::percent::Percent;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::schema::text::KeyPrefix;
use crate::schema::units::{MIN, MS, SEC};
use crate::schema::{
    Errors, Label, One, Path, Pct, Secret, SecretText, Span, VariableName, section,
};

/// Where the endpoints of an upstream come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Who is asked.
    pub registry: Registry,
    /// The least time between two questions, 200 ms to 1 min.
    pub interval: Nanos,
    /// When an answer counts.
    pub rules: Rules,
}

/// Who knows the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registry {
    /// The proxy itself.
    Envoy {
        /// The cluster of its admin interface.
        admin: String,
        /// The cluster whose endpoints these are.
        cluster: String,
    },
    /// Consul's catalogue.
    Consul(Consul),
    /// Keys in etcd.
    Etcd(Etcd),
}

/// A service of Consul's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consul {
    /// The cluster of Consul's HTTP API.
    pub cluster: String,
    /// The service's name.
    pub service: String,
    /// Only instances with this tag.
    pub tag: Option<String>,
    /// The data centre that is asked; the agent's own if none is given.
    pub datacenter: Option<String>,
    /// Instances are sorted by their distance from this node.
    pub near: Option<String>,
    /// Whether only instances count whose checks all pass.
    pub passing: bool,
    /// What the client shows to be let in.
    pub token: Option<Credential>,
    /// How long an answer may wait for a change, 1 s to 10 min.
    pub wait: Nanos,
}

/// Keys below a prefix in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// The cluster of etcd's client port.
    pub cluster: String,
    /// What the keys start with.
    pub prefix: String,
    /// Who asks: a name, and the variable with its password.
    pub user: Option<(String, String)>,
}

/// A secret, or where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The secret itself.
    Given(SecretText),
    /// The name of the environment variable that has it.
    Variable(String),
}

section! {
    /// What holds for all sources of endpoints, unless a source says otherwise.
    Discovery {
        /// The cluster of Envoy's own admin interface, best on a unix socket (`admin.address.pipe`).
        /// Where it is named, an upstream without `endpoints` has those of its cluster in Envoy.
        envoy_admin: Option<Label> = Absent("none");
        /// Time between two questions, for Envoy and etcd; the least time between two answers of
        /// Consul, which waits for changes itself.
        interval: Span<{ 200 * MS }, MIN> = Default("\"1s\"");
        /// Whether a list of no endpoint counts. It does not by default: an empty answer is more
        /// often a mistake than true, and would end all service.
        empty_is_real: bool = Default("false");
        /// The most of the known endpoints, in percent, that an answer may lack and count at once.
        /// If it lacks more, it counts when the next answer lacks them too.
        max_removal_percent: Pct = Default("50");
    }
}

section! {
    /// Who names the endpoints; one of these.
    SourceSection {
        /// The proxy itself: whatever feeds its cluster, be it static, DNS or EDS.
        envoy: Option<EnvoySection> = Absent("none");
        /// Consul: the healthy instances of a service.
        consul: Option<ConsulSection> = Absent("none");
        /// etcd: keys below a prefix.
        etcd: Option<EtcdSection> = Absent("none");
    }
}

section! {
    /// Endpoints as Envoy has them. One worker reads them from the admin interface,
    /// `discovery.envoy_admin`; Envoy's own verdicts (active checks, outlier detection, the health
    /// that EDS reports) take endpoints out of rotation.
    EnvoySection {
        /// The cluster.
        cluster: Option<Label> = Absent("the upstream's `cluster`");
        /// Time between two questions.
        interval: Option<Span<{ 200 * MS }, MIN>> = Absent("`discovery.interval`");
        /// Whether a list of no endpoint counts.
        empty_is_real: Option<bool> = Absent("`discovery.empty_is_real`");
        /// The most that an answer may lack and count at once, in percent.
        max_removal_percent: Option<Pct> = Absent("`discovery.max_removal_percent`");
    }
}

section! {
    /// Endpoints as Consul's `/v1/health/service` has them, by blocking queries. An instance's
    /// address is that of its service, or else of its node; its weight is Consul's; `zone` and
    /// `priority` may stand in the service's `meta`.
    ConsulSection {
        /// Envoy's cluster of Consul's HTTP API.
        cluster: Label = Required;
        /// The service's name.
        service: Label = Required;
        /// Only instances with this tag.
        tag: Option<Label> = Absent("all");
        /// The data centre that is asked.
        datacenter: Option<Label> = Absent("the agent's own");
        /// Asks Consul to sort the instances by their distance from this node (`_agent`: the
        /// agent's own). haven itself keeps them by address.
        near: Option<Label> = Absent("none");
        /// Whether Consul is to name only instances whose checks all pass. With `false` those with a
        /// `critical` check are named too, and are out of rotation: they come back with the state
        /// that they had.
        passing: bool = Default("true");
        /// The token of Consul's access control, sent as `X-Consul-Token`.
        token: Option<Secret> = Absent("none");
        /// The variable with the token, of the plugin's `vm_config.environment_variables`.
        token_env: Option<VariableName> = Absent("none");
        /// How long an answer may wait for a change. Envoy's cluster must not end it sooner.
        wait: Span<SEC, { 10 * MIN }> = Default("\"30s\"");
        /// The least time between two answers.
        interval: Option<Span<{ 200 * MS }, MIN>> = Absent("`discovery.interval`");
        /// Whether a list of no endpoint counts.
        empty_is_real: Option<bool> = Absent("`discovery.empty_is_real`");
        /// The most that an answer may lack and count at once, in percent.
        max_removal_percent: Option<Pct> = Absent("`discovery.max_removal_percent`");
    }
}

section! {
    /// Endpoints as the values of keys in etcd (v3, over its JSON gateway): `ip:port`, or
    /// `{"address": "10.0.0.1:8080", "weight": 3, "priority": 0, "zone": "a"}`.
    EtcdSection {
        /// Envoy's cluster of etcd's client port; several members in it may stand in for each other.
        cluster: Label = Required;
        /// What the keys start with.
        prefix: KeyPrefix = Required;
        /// The user that asks.
        username: Option<Label> = Absent("none");
        /// The variable with its password, of the plugin's `vm_config.environment_variables`.
        password_env: Option<VariableName> = Absent("none");
        /// Time between two questions.
        interval: Option<Span<{ 200 * MS }, MIN>> = Absent("`discovery.interval`");
        /// Whether a list of no endpoint counts.
        empty_is_real: Option<bool> = Absent("`discovery.empty_is_real`");
        /// The most that an answer may lack and count at once, in percent.
        max_removal_percent: Option<Pct> = Absent("`discovery.max_removal_percent`");
    }
}

/// The source of an upstream as it is written.
pub type AnySource = One<SourceSection>;

impl SourceSection {
    /// Reports the errors that span fields.
    pub(crate) fn check(&self, at: &Path<'_>, admin: Option<&str>, errors: &mut Errors) {
        if self.envoy.is_some() && admin.is_none() {
            errors.refuse_shown(&at.key("envoy"), "{…}", NEEDS_ADMIN);
        }
        if let Some(consul) = &self.consul
            && let (Some(_), Some(variable)) = (&consul.token, &consul.token_env)
        {
            let at = at.key("consul");
            let want = "none: there is a \"token\" already";
            errors.refuse_text(&at.key("token_env"), variable, want);
        }
        if let Some(etcd) = &self.etcd {
            let at = at.key("etcd");
            match (&etcd.username, &etcd.password_env) {
                (Some(_), None) => errors.missing(
                    &at.key("password_env"),
                    "the variable with the password of \"username\"",
                ),
                (None, Some(_)) => {
                    errors.missing(&at.key("username"), "the user of \"password_env\"");
                }
                _ => {}
            }
        }
    }
}

const NEEDS_ADMIN: &str = "the cluster of Envoy's admin interface at the top level: \"discovery\": \
                           {\"envoy_admin\": …}";

impl Discovery {
    /// The source of an upstream, whose cluster in the proxy is `cluster`. `given`: what stands in
    /// its `endpoints`, if they are no list; `None`: they are left out.
    pub(crate) fn source(&self, given: Option<SourceSection>, cluster: &str) -> Option<Source> {
        let Some(given) = given else {
            return Some(self.with(
                Registry::Envoy {
                    admin: self.envoy_admin.clone()?,
                    cluster: cluster.to_owned(),
                },
                (None, None, None),
            ));
        };
        if let Some(it) = given.envoy {
            let registry = Registry::Envoy {
                admin: self.envoy_admin.clone()?,
                cluster: it.cluster.unwrap_or_else(|| cluster.to_owned()),
            };
            let own = (it.interval, it.empty_is_real, it.max_removal_percent);
            return Some(self.with(registry, own));
        }
        if let Some(it) = given.consul {
            let given = it.token.map(Credential::Given);
            let own = (it.interval, it.empty_is_real, it.max_removal_percent);
            let registry = Registry::Consul(Consul {
                cluster: it.cluster,
                service: it.service,
                tag: it.tag,
                datacenter: it.datacenter,
                near: it.near,
                passing: it.passing,
                token: given.or(it.token_env.map(Credential::Variable)),
                wait: it.wait,
            });
            return Some(self.with(registry, own));
        }
        let it = given.etcd?;
        let own = (it.interval, it.empty_is_real, it.max_removal_percent);
        let registry = Registry::Etcd(Etcd {
            cluster: it.cluster,
            prefix: it.prefix,
            user: it.username.zip(it.password_env),
        });
        Some(self.with(registry, own))
    }

    fn with(
        &self,
        registry: Registry,
        (interval, empty_is_real, max_removal): (Option<Nanos>, Option<bool>, Option<Percent>),
    ) -> Source {
        Source {
            registry,
            interval: interval.unwrap_or(self.interval),
            rules: Rules {
                empty_is_real: empty_is_real.unwrap_or(self.empty_is_real),
                max_removal: max_removal.unwrap_or(self.max_removal_percent),
            },
        }
    }
}

impl Source {
    /// What it is called in messages and documents.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.registry {
            Registry::Envoy { .. } => "envoy",
            Registry::Consul(_) => "consul",
            Registry::Etcd(_) => "etcd",
        }
    }

    /// The proxy's cluster of whoever is asked.
    #[must_use]
    pub fn asked_cluster(&self) -> &str {
        match &self.registry {
            Registry::Envoy { admin, .. } => admin,
            Registry::Consul(consul) => &consul.cluster,
            Registry::Etcd(etcd) => &etcd.cluster,
        }
    }

    /// The longest time between two questions that is no mistake of the clock's.
    #[must_use]
    pub fn longest(&self) -> Nanos {
        self.interval.times(2).max(Nanos::from_secs(20))
    }

    /// All else that tells what is asked of it, in order: what is not given is empty.
    #[must_use]
    pub fn identity(&self) -> Vec<String> {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        match &self.registry {
            Registry::Envoy { cluster, .. } => vec![cluster.clone()],
            Registry::Consul(it) => vec![
                it.service.clone(),
                text(&it.tag),
                text(&it.datacenter),
                text(&it.near),
                number(it.passing.into()),
                number(it.wait.0),
                match &it.token {
                    None => String::new(),
                    Some(Credential::Given(SecretText(token))) => token.clone(),
                    Some(Credential::Variable(name)) => name.clone(),
                },
            ],
            Registry::Etcd(it) => {
                let (name, variable) = it.user.clone().unwrap_or_default();
                vec![it.prefix.clone(), name, variable]
            }
        }
    }
}
