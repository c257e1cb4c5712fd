//! Shares without floats.

/// A percentage in hundredths of a percent: 0 to 10,000. Floats stay out of decisions and shared
/// state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);
