//! What of a recipe may change when its run is resumed.

use super::Change;

/// The keys that say how long a run is.
const LENGTH: [&str; 3] = ["training.max_steps", "training.epochs", "training.patience"];

/// What else decides no value that is trained, or is compared by its content:
/// when something is logged, measured or kept, how the result is named and
/// written, where the work is done and how much memory it may take.
const HARMLESS: [&str; 14] = [
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "samples.prompts",
    "samples.max_new_tokens",
    "output.dtype",
    "model.base_name",
    "tasks.data",
    // The weights there are compared with those that the run was started on.
    "model.path",
    // These change the last digits at most.
    "device",
    "training.pad_to_multiple_of",
    "training.recompute",
    // Whether what the device lacks may be replaced; what it was replaced with is `model.dtype`.
    "model.dtype_fallback",
];

/// The adapter that a run starts from, which is compared by its content too: it
/// may lie elsewhere, but a run does not come to start from one, or cease to.
const FROM: &str = "adapter.from";

/// Who is told of the run while it goes on.
const LOGGING: &str = "logging.";

/// The rule, for people.
pub(crate) const MAY_CHANGE: &str = "the length (training.max_steps or training.epochs, to more steps than are \
     made, and patience), log_every, evaluate_every, checkpoint_every, keep_checkpoints, recompute and pad_to_multiple_of of \
     [training], [samples], [logging], tasks.data, device, model.path and adapter.from to where the same is, model.base_name and output.dtype";

impl Change {
    /// Whether it is of the run's length.
    pub(crate) fn is_length(&self) -> bool {
        LENGTH.contains(&self.key.as_str())
    }

    /// Whether it is of the number of steps that the run is to have.
    pub(crate) fn is_steps(&self) -> bool {
        self.is_length() && self.key != "training.patience"
    }

    /// Whether a run may go on with it.
    pub(crate) fn is_allowed(&self) -> bool {
        let moved = self.key == FROM && self.is_of_both();
        let key = self.key.as_str();
        self.is_length() || moved || key.starts_with(LOGGING) || HARMLESS.contains(&key)
    }
}
