//! What is asked of each kind of source, and how its answers are read.

use crate::base::headers::parse_number;
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::document::{Credential, Etcd, Registry, Source};
use crate::host::{Call, CallAnswer, CallId, Calls, Host, NoCall};
use crate::policy::discovery::etcd::{Page, Pages, Trouble};
use crate::policy::discovery::{
    Answer, Failure, Membership, answer as answers, consul, envoy, etcd,
};
use crate::schema::SecretText;
use crate::schema::text::is_secret;

/// The time that an answer may take which does not wait for a change.
const TIMEOUT: Nanos = Nanos::from_secs(2);

/// How much longer than it was told Consul may let a query wait: a sixteenth of the time, and what
/// the answer takes.
const LONGER: u64 = 16;

/// What a source is shown to be let in.
#[derive(Debug)]
pub(super) enum Secret {
    /// Nothing.
    None,
    /// A token; a user's password.
    Known(SecretText),
}

impl Secret {
    /// The secret of a source: from its configuration, or from a variable.
    ///
    /// # Errors
    /// There is no such variable, or what it has cannot be one: the field that names it, and why.
    pub(super) fn of<H: Host>(source: &Source, host: &H) -> Result<Self, String> {
        let (field, name) = match &source.registry {
            Registry::Envoy { .. } => return Ok(Self::None),
            Registry::Consul(consul) => match &consul.token {
                None => return Ok(Self::None),
                Some(Credential::Given(secret)) => return Ok(Self::Known(secret.clone())),
                Some(Credential::Variable(name)) => ("consul.token_env", name),
            },
            Registry::Etcd(etcd) => match &etcd.user {
                None => return Ok(Self::None),
                Some((_, name)) => ("etcd.password_env", name),
            },
        };
        // What a header carries; a password goes in a body, but is typed like any other.
        match host.variable(name).filter(|secret| is_secret(secret)) {
            Some(secret) => Ok(Self::Known(SecretText(secret))),
            // The name of the variable may be the secret itself, by mistake.
            None => Err([
                field,
                ": this variable is not set, or is no secret of 1 to 4096 visible \
                          ASCII characters: see vm_config.environment_variables",
            ]
            .concat()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::None => "",
            Self::Known(secret) => &secret.0,
        }
    }
}

/// What is known of a question while it is asked, and for the next one.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// Consul's index of the last answer, after which a change is waited for.
    index: u64,
    /// etcd's pages so far.
    pages: Pages,
    /// etcd's token.
    token: Option<String>,
    /// Whether etcd was asked for a token in this question already.
    let_in: bool,
}

/// What an answer makes of a question.
#[derive(Debug)]
pub(super) enum Asked {
    /// It has its answer.
    Answered {
        /// The answer.
        answer: Answer,
        /// How many endpoints were left out of it.
        left_out: usize,
    },
    /// One more call has to be made.
    Again,
    /// It has none.
    Failed(Failure),
}

impl Question {
    /// Makes the next call. `wait`: how long Consul may let it wait. Returns how long it may take.
    pub(super) fn ask<H: Calls>(
        &self,
        source: &Source,
        secret: &Secret,
        wait: Nanos,
        host: &H,
    ) -> Result<(CallId, Nanos), NoCall> {
        let (mut shown, mut body) = (None, String::new());
        let (method, path, authority, timeout) = match &source.registry {
            Registry::Envoy { cluster, .. } => {
                ("GET", envoy::path(cluster), "envoy-admin", TIMEOUT)
            }
            Registry::Consul(config) => {
                if let Secret::Known(token) = secret {
                    shown = Some(("x-consul-token", token.0.as_str()));
                }
                let waits = if self.waits() { wait } else { Nanos::ZERO };
                let longer = Nanos(waits.0 / LONGER);
                let path = consul::path(config, self.index, wait);
                ("GET", path, "consul", waits.plus(longer).plus(TIMEOUT))
            }
            Registry::Etcd(config) => {
                let path = match (&config.user, &self.token) {
                    (Some((name, _)), None) => {
                        body = etcd::credentials(name, secret.text());
                        etcd::AUTHENTICATE
                    }
                    (_, token) => {
                        shown = token
                            .as_ref()
                            .map(|token| ("authorization", token.as_str()));
                        body = self.pages.request(&config.prefix);
                        etcd::RANGE
                    }
                };
                ("POST", path.to_owned(), "etcd", TIMEOUT)
            }
        };
        let length = number(body.len() as u64);
        let mut headers = vec![
            (":method", method),
            (":scheme", "http"),
            (":path", &path),
            (":authority", authority),
            ("accept", "application/json"),
            ("user-agent", "haven-discovery"),
        ];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
            headers.push(("content-length", &length));
        }
        headers.extend(shown);
        let id = host.call(&Call::Http {
            cluster: source.asked_cluster(),
            headers: &headers,
            body: body.as_bytes(),
            timeout,
        })?;
        Ok((id, timeout))
    }

    /// Whether the answer waits for a change: then it is as new as the moment when it comes.
    pub(super) const fn waits(&self) -> bool {
        self.index > 0
    }

    /// Reads the answer to the last call.
    pub(super) fn read(&mut self, source: &Source, answer: &CallAnswer) -> Asked {
        let read = match http(answer) {
            Err(failure) => return Asked::Failed(failure),
            Ok(read) => read,
        };
        match &source.registry {
            Registry::Envoy { cluster, .. } => Self::read_envoy(cluster, &read),
            Registry::Consul(_) => self.read_consul(answer, &read),
            Registry::Etcd(config) => self.read_etcd(config, &read),
        }
    }

    fn read_envoy(cluster: &str, (status, body): &(u64, &[u8])) -> Asked {
        if *status != 200 {
            return Asked::status("Envoy's admin interface", *status);
        }
        match envoy::parse(body, cluster) {
            Ok(hosts) => Asked::Answered {
                answer: Answer {
                    members: hosts.members,
                    cursor: 0,
                },
                left_out: hosts.left_out,
            },
            Err(failure) => Asked::Failed(failure),
        }
    }

    fn read_consul(&mut self, answer: &CallAnswer, (status, body): &(u64, &[u8])) -> Asked {
        if *status != 200 {
            return Asked::status("Consul", *status);
        }
        let index = match answer {
            CallAnswer::Http { headers, .. } => headers.get(consul::INDEX),
            _ => None,
        };
        match consul::parse(body) {
            Ok(members) => {
                self.index = consul::next_index(self.index, index);
                Asked::answered(members, self.index)
            }
            Err(failure) => Asked::Failed(failure),
        }
    }

    fn read_etcd(&mut self, config: &Etcd, (status, body): &(u64, &[u8])) -> Asked {
        if config.user.is_some() && self.token.is_none() {
            self.let_in = true;
            return match etcd::token(*status, body) {
                Ok(token) => {
                    self.token = Some(token);
                    Asked::Again
                }
                Err(failure) => Asked::Failed(failure),
            };
        }
        match std::mem::take(&mut self.pages).read(*status, body) {
            Ok(Page::More(pages)) => {
                self.pages = pages;
                Asked::Again
            }
            Ok(Page::Last(members, revision)) => Asked::answered(members, revision),
            Err(Trouble::Compacted) => Asked::Again,
            Err(Trouble::Unauthenticated) if config.user.is_some() && !self.let_in => {
                self.token = None;
                Asked::Again
            }
            Err(Trouble::Unauthenticated) => {
                self.token = None;
                Asked::status("etcd", *status)
            }
            Err(Trouble::Failed(failure)) => Asked::Failed(failure),
        }
    }

    /// The question has its answer. `held`: which counts only if it is said again, so that the next
    /// question is not to wait for a change.
    pub(super) fn answered(&mut self, held: bool) {
        self.let_in = false;
        if held {
            self.index = 0;
        }
    }

    /// Begins anew: what is known of it belongs to a source that may be another one by now.
    pub(super) fn restart(&mut self) {
        self.index = 0;
        self.pages = Pages::default();
        self.let_in = false;
    }
}

impl Asked {
    fn answered(members: Membership, cursor: u64) -> Self {
        Self::Answered {
            answer: Answer { members, cursor },
            left_out: 0,
        }
    }

    fn status(who: &str, status: u64) -> Self {
        let why = [who, " answers with status ", &number(status)];
        Self::Failed(Failure::Error(why.concat()))
    }
}

/// Status and body of an answer.
fn http(answer: &CallAnswer) -> Result<(u64, &[u8]), Failure> {
    let none = || Failure::Error("no answer came".into());
    let CallAnswer::Http {
        headers,
        body,
        size,
    } = answer
    else {
        return Err(none());
    };
    let status = headers.get(":status").and_then(parse_number);
    let status = status.ok_or_else(none)?;
    if *size > answers::MAX_BYTES {
        let size = number(*size as u64);
        let why = ["the answer has ", &size, " bytes, more than 4 MiB"];
        return Err(Failure::Refused(why.concat()));
    }
    Ok((status, body))
}
