//! What a comparison tells whoever is watching.

use std::sync::Arc;

use olora_runs::{Event, Observer};

/// Receives the events of a comparison, from the thread that trains.
pub trait ComparisonObserver: Send + Sync {
    /// Called for each event, in order.
    fn on(&self, event: &ComparisonEvent<'_>);
}

/// Something that happened in a comparison.
#[derive(Clone, Debug)]
pub enum ComparisonEvent<'a> {
    /// Something of interest happened in a run.
    Run(&'a Event),
    /// A run begins.
    Trial {
        /// Its number, from 1.
        number: usize,
        /// How many there are to be, as far as is known: grids may grow.
        of: usize,
        /// What it is.
        name: &'a str,
    },
    /// A run is finished.
    TrialFinished {
        /// What it is.
        name: &'a str,
        /// The validation loss after its last step; infinite if the loss stopped
        /// being a number.
        loss: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// A model is put to tasks: which.
    Scoring(&'a str),
}

/// Lets through what is of interest of one run among many.
pub(crate) struct Muted(pub(crate) Arc<dyn ComparisonObserver>);

impl Observer for Muted {
    fn on(&self, event: &Event) {
        let passes = matches!(
            event,
            Event::Note(_)
                | Event::DeviceChecked { .. }
                | Event::Resumed(_)
                | Event::Evaluated { .. }
        );
        if passes {
            self.0.on(&ComparisonEvent::Run(event));
        }
    }
}
