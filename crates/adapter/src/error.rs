//! The errors of this crate. Each names the thing, what was expected and what was found.

use std::path::PathBuf;

/// Why an adapter could not be attached, merged, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A target names no linear layer of the model.
    #[error(
        "{} no linear layer of the model: {}. The linear layers are called: {}",
        if .unmatched.len() == 1 { "this target matches" } else { "these targets match" },
        quoted(.unmatched),
        quoted(.available)
    )]
    UnmatchedTargets {
        /// The patterns that matched nothing.
        unmatched: Vec<String>,
        /// The distinct last names of the model's linear layers.
        available: Vec<String>,
    },
    /// The list of targets is empty, or everything it names is excluded.
    #[error("no layer is left to adapt: {0}. Give at least one target, for example \"all-linear\"")]
    NoTargets(String),
    /// A module that is to be saved whole is not there.
    #[error(
        "`{0}` in `modules_to_save` is no module of this model (an `lm_head` that is tied to the \
         embedding is not one either)"
    )]
    NoModule(String),
    /// A target or exclusion is not a valid glob.
    #[error("`{pattern}` is not a valid pattern: {reason}")]
    BadPattern {
        /// The pattern as given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The rank does not fit a weight.
    #[error(
        "rank {rank} does not fit `{path}` of shape [{d_in}, {d_out}]: \
         it must be between 1 and {}, the weight's smaller side",
        (*.d_in).min(*.d_out)
    )]
    RankTooLarge {
        /// The rank asked for.
        rank: usize,
        /// The weight's path.
        path: String,
        /// Input features.
        d_in: usize,
        /// Output features.
        d_out: usize,
    },
    /// A number of the configuration is out of range.
    #[error("`{key}` is {found}, but must be {expected}")]
    OutOfRange {
        /// The configuration key.
        key: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The model already carries an adapter; Burn stores one per weight.
    #[error("`{0}` already has an adapter: merge or remove it before attaching another")]
    AlreadyAdapted(String),
    /// The model carries no adapter.
    #[error("the model has no adapter attached")]
    NotAdapted,
    /// A method, or an option of it, that this layer cannot have.
    #[error("`{path}` cannot have {what}: {reason}")]
    Impossible {
        /// The layer or module.
        path: String,
        /// What was asked for.
        what: String,
        /// Why not, and what to do instead.
        reason: String,
    },
    /// A weight or factor holds NaN or infinity.
    #[error("`{0}` holds values that are not finite")]
    NotFinite(String),
    /// A value is too large for the number format that it was to be written in.
    #[error(
        "`{path}` has the value {value:e}, which does not fit {dtype} (its largest is {limit:e}): nothing \
         was written. Choose {} instead",
        if *.dtype == "float16" { "bfloat16 or float32" } else { "float32" }
    )]
    DoesNotFit {
        /// The tensor's name.
        path: String,
        /// The first such value.
        value: f32,
        /// The number format.
        dtype: &'static str,
        /// The largest magnitude that the format holds.
        limit: f32,
    },
    /// An adapter's tensors are not those that the model and configuration call for.
    #[error("{file} does not fit the model: {}", in_short(.problems))]
    Mismatch {
        /// The file read.
        file: PathBuf,
        /// Every missing, unused and misshapen tensor.
        problems: Vec<String>,
    },
    /// An adapter's tensors are not those that its own configuration calls for.
    #[error("{file} does not fit its own {}: {}", crate::CONFIG_FILE, in_short(.problems))]
    Unsound {
        /// The file read.
        file: PathBuf,
        /// Every missing, unused and misshapen tensor.
        problems: Vec<String>,
    },
    /// An adapter configuration asks for something that is not supported.
    #[error("{file} asks for {what}, which olora does not support")]
    Unsupported {
        /// The file read.
        file: PathBuf,
        /// The key and value that are not supported.
        what: String,
    },
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} is not a valid {kind}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor could not be read back from its device.
    #[error("reading `{path}` from the device: {reason}")]
    Device {
        /// The tensor's path.
        path: String,
        /// The backend's message.
        reason: String,
    },
}

pub(crate) fn device_error(path: &str, reason: &impl std::fmt::Display) -> AdapterError {
    AdapterError::Device {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Many problems as one sentence: how many there are of each kind, the word
/// before their colon, and three of them, of as many kinds as can be.
///
/// ```
/// let all: Vec<String> = (0..40).map(|i| format!("missing: `layers.{i}`")).collect();
/// assert_eq!(
///     olora_adapter::in_short(&all),
///     "40 tensors (40 missing), such as missing: `layers.0`; missing: `layers.1`; missing: `layers.2`"
/// );
/// assert_eq!(olora_adapter::in_short(&all[..1]), "missing: `layers.0`");
/// ```
pub fn in_short(problems: &[String]) -> String {
    const EXAMPLES: usize = 3;
    if problems.len() <= EXAMPLES {
        return problems.join("; ");
    }
    let kind = |problem: &str| {
        let kind = problem.split_once(": ").map_or("", |(kind, _)| kind);
        if kind.chars().all(|c| c.is_ascii_lowercase()) {
            kind.to_owned()
        } else {
            String::new()
        }
    };
    let mut kinds: Vec<(String, Vec<&String>)> = Vec::new();
    for problem in problems {
        let kind = kind(problem);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, of_kind)) => of_kind.push(problem),
            None => kinds.push((kind, vec![problem])),
        }
    }
    let counts: Vec<_> = kinds
        .iter()
        .map(|(kind, of_kind)| {
            let kind = if kind.is_empty() { "other" } else { kind };
            format!("{} {kind}", of_kind.len())
        })
        .collect();
    let most = kinds.iter().map(|(_, of_kind)| of_kind.len()).max();
    let in_turn = (0..most.unwrap_or(0))
        .flat_map(|i| kinds.iter().filter_map(move |(_, of_kind)| of_kind.get(i)));
    let examples: Vec<_> = in_turn.take(EXAMPLES).map(|text| text.as_str()).collect();
    format!(
        "{} tensors ({}), such as {}",
        problems.len(),
        counts.join(", "),
        examples.join("; ")
    )
}
