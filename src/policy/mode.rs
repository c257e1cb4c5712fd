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
