//! Why a device cannot be had.

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// What follows the colon is no number.
    #[error("`{index}` in `{text}` is not a device number; write for example {name}:0")]
    NotANumber {
        /// The whole text.
        text: String,
        /// What follows the colon.
        index: String,
        /// What is before it.
        name: String,
    },
    /// There is no backend of this name.
    #[error("there is no device `{name}`; there are {}", .known.join(", "))]
    Unknown {
        /// The name given.
        name: String,
        /// Every name.
        known: Vec<&'static str>,
    },
    /// The backend is not in this build.
    #[error(
        "`{name}` is not compiled into this build, which has {}. Add it with:\n  \
         cargo install --locked --path crates/cli --features {features}",
        .compiled_in.join(", ")
    )]
    NotCompiledIn {
        /// The name given.
        name: &'static str,
        /// What this build has.
        compiled_in: Vec<&'static str>,
        /// The Cargo features of this build and the one that adds it.
        features: String,
    },
    /// The driver's library is not on this machine.
    #[error(
        "no driver for `{name}` was found on this machine: none of {} can be loaded. \
         It needs {needs}", .libraries.join(", ")
    )]
    NoDriver {
        /// The backend.
        name: &'static str,
        /// The libraries that were tried.
        libraries: &'static [&'static str],
        /// What has to be there.
        needs: &'static str,
    },
    /// The driver is there, or is not needed, and shows no device.
    #[error("no {name} device was found on this machine. It needs {needs}; see `olora devices`")]
    NoneFound {
        /// The backend.
        name: &'static str,
        /// What has to be there.
        needs: &'static str,
    },
    /// There are fewer devices than that.
    #[error("there is no `{text}`: {found} found; see `olora devices`")]
    NoSuchNumber {
        /// The text given.
        text: String,
        /// How many there are.
        found: usize,
    },
    /// The device is listed but does not answer.
    #[error("`{device}` is listed but cannot be used: {reason}")]
    DoesNotOpen {
        /// As `--device` takes it.
        device: String,
        /// What its driver said.
        reason: String,
    },
    /// An option that the device has no use for.
    #[error(
        "{option} has no use with `{device}`, which makes no kernels at run time: leave it out"
    )]
    NoUse {
        /// The option.
        option: &'static str,
        /// The device.
        device: String,
    },
    /// Kernel options came after the first use of a device.
    #[error("kernel options must be set before any device is used in this process")]
    TooLate,
}
