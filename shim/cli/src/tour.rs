//! The command `pageless tour`.

use crate::args::TourSettings;
use crate::narrate::Narrator;
use crate::report::TourReport;
use crate::story;

/// Makes the tour and says what happened.
pub fn perform(settings: &TourSettings, narrator: &mut Narrator) -> anyhow::Result<TourReport> {
    story::perform(settings, narrator)
}
