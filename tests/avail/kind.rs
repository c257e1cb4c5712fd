//! The kinds of faults.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One endpoint refuses connections.
    Dead,
    /// One endpoint takes requests and never answers.
    Hanging,
    /// One endpoint takes 100 times as long.
    Slow,
    /// One endpoint comes and goes.
    Flapping,
    /// Half of one endpoint's answers are 503.
    HalfFailing,
    /// Each endpoint in turn is killed and comes back.
    RollingRestart,
    /// Three times the capacity is asked for, half of it critical.
    Overload,
    /// All endpoints take five times as long, still within the deadline.
    AllSlower,
    /// 60 % of all answers are 503 at once; the endpoints have room for more tries.
    StormWithRoom,
    /// 60 % of all answers are 503 after the usual work; there is no room for more tries.
    StormWithoutRoom,
    /// One client sends ten times what all others send together.
    Abuser,
    /// One route answers 503 at all endpoints, another is well.
    BadRoute,
    /// All endpoints refuse connections, then all come back.
    Outage,
}

impl Kind {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 13] = [
        Self::Dead,
        Self::Hanging,
        Self::Slow,
        Self::Flapping,
        Self::HalfFailing,
        Self::RollingRestart,
        Self::Overload,
        Self::AllSlower,
        Self::StormWithRoom,
        Self::StormWithoutRoom,
        Self::Abuser,
        Self::BadRoute,
        Self::Outage,
    ];

    /// The name by which a run selects it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dead => "one-dead",
            Self::Hanging => "one-hanging",
            Self::Slow => "one-100x-slow",
            Self::Flapping => "one-flapping",
            Self::HalfFailing => "one-half-failing",
            Self::RollingRestart => "rolling-restart",
            Self::Overload => "overload-3x",
            Self::AllSlower => "all-5x-slower",
            Self::StormWithRoom => "storm-with-room",
            Self::StormWithoutRoom => "storm-without-room",
            Self::Abuser => "abusive-client",
            Self::BadRoute => "bad-route",
            Self::Outage => "total-outage",
        }
    }

    /// What it is, for a reader of the report.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Dead => "one endpoint dead",
            Self::Hanging => "one endpoint hanging",
            Self::Slow => "one endpoint 100 times slower",
            Self::Flapping => "one endpoint flapping",
            Self::HalfFailing => "half of one endpoint's answers fail",
            Self::RollingRestart => "rolling restart",
            Self::Overload => "3 times the capacity",
            Self::AllSlower => "all endpoints 5 times slower",
            Self::StormWithRoom => "60 % of answers fail, room to retry",
            Self::StormWithoutRoom => "60 % of answers fail, no room",
            Self::Abuser => "one abusive client: the others",
            Self::BadRoute => "one route fails: the other",
            Self::Outage => "total outage",
        }
    }
}
