//! Kill switches.

use crate::schema::choice;

/// A kill switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its name.
    pub name: String,
    /// Whether the routes that name it are served.
    pub on: bool,
}

choice! {
    /// Whether the routes that name a switch are served.
    SwitchState -> bool {
        "on" => true,
        "off" => false,
    }
}
