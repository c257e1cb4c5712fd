//! Whether policies act.

use crate::schema::choice;

choice! {
    /// What a policy does with its decision. The innermost mode that is set wins: policy, then
    /// route, then the top level.
    enum Mode {
        /// Act on it.
        Enforce = "enforce",
        /// Decide, count and log "would have", never act.
        Shadow = "shadow",
        /// Not even look.
        Off = "off",
    }
}

impl Mode {
    /// The word for it in metrics and access logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }

    /// Keeps the state of shadow uses apart from that of enforced ones.
    #[must_use]
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Enforce | Self::Off => "",
        }
    }
}
