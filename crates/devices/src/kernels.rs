//! How kernels are made: fusion, autotuning, and where choices are kept.

use std::time::Duration;

use burn::cubecl::{
    client::Client,
    config::{CubeClRuntimeConfig, RuntimeConfig, autotune::AutotuneLevel, cache::CacheConfig},
    environment,
    ir::{ElemType, FloatKind},
    throughput::{
        MemoryAccess, MemorySpec, ThroughputCache, ThroughputKey, ThroughputMode, ThroughputValue,
    },
};

use crate::{DeviceError, KernelOptions};

/// Sets Burn's and CubeCL's process-wide configuration. A `burn.toml` or
/// `cubecl.toml` of the user and the environment's `BURN_…` and `CUBECL_…` are
/// read first, and hold in everything that is not asked for here; compiled
/// kernels are kept in any case, where CubeCL can: not portable shaders.
pub(crate) fn prepare(options: KernelOptions) -> Result<(), DeviceError> {
    let mut cubecl = CubeClRuntimeConfig::from_current_dir().override_from_env();
    if matches!(cubecl.environment.path, CacheConfig::Target) {
        // By default choices would be kept below whatever Cargo.toml is near.
        cubecl.environment.path = CacheConfig::Global;
    }
    cubecl.compilation.cache = true;
    if options.autotune == Some(false) {
        // What `take_first_kernels` relies on.
        cubecl.autotune.level = AutotuneLevel::Balanced;
        cubecl.autotune.disable_short_circuit = false;
        cubecl.throughput.disable_cache = false;
    }
    if !CubeClRuntimeConfig::try_set(cubecl) {
        return Err(DeviceError::TooLate);
    }
    if !options.fusion {
        let burn = burn::BurnConfig::from_current_dir().override_from_env();
        if !unfused(&burn).is_some_and(burn::BurnConfig::try_set) {
            return Err(DeviceError::TooLate);
        }
    }
    Ok(())
}

/// The same configuration, but that no fused kernel is ever tried: every
/// operation runs by itself.
fn unfused(config: &burn::BurnConfig) -> Option<burn::BurnConfig> {
    let mut table = toml::Table::try_from(config).ok()?;
    let fusion = table
        .entry("fusion")
        .or_insert_with(|| toml::Table::new().into());
    let search = fusion
        .as_table_mut()?
        .entry("beam_search")
        .or_insert_with(|| toml::Table::new().into());
    search
        .as_table_mut()?
        .insert("max_explorations".to_owned(), 0.into());
    table.try_into().ok()
}

/// Whether the configuration leaves [`take_first_kernels`] its effect, where
/// it was not asked for.
pub(crate) fn may_take_first() -> bool {
    let config = CubeClRuntimeConfig::get();
    !matches!(config.autotune.level, AutotuneLevel::Full)
        && !config.autotune.disable_short_circuit
        && !config.throughput.disable_cache
}

/// Keeps the device's choices in a file of their own, unless the user has named
/// one: CubeCL tells devices apart by their number, not by what they are.
pub(crate) fn keep_choices(name: &str, options: KernelOptions, autotune: bool) {
    if CubeClRuntimeConfig::get().environment.name != "default" {
        return;
    }
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let fusion = if options.fusion { "" } else { "-unfused" };
    let tuned = if autotune { "" } else { "-untuned" };
    environment::activate(format!("olora-{name}{fusion}{tuned}"));
}

/// Makes autotuning take the first kernel that works, instead of the fastest.
///
/// Burn 0.22.1 has no switch for this at run time. What it has is a short
/// circuit: a candidate that comes close to the device's measured peak is
/// taken at once. So the peaks are set before anything measures them, so low
/// that every candidate exceeds them. One kind of kernel has no such bound and
/// is still measured: a reduction fused with what is broadcast from it.
pub(crate) fn take_first_kernels(client: &Client) {
    let cache = ThroughputCache::get_for_device(client.name(), client.properties());
    let mut cache = cache.lock();
    let slow = ThroughputValue {
        ops_count: 1,
        duration: Duration::from_hours(1),
    };
    let mut set = |mode| cache.insert(ThroughputKey { mode }, slow);
    set(ThroughputMode::Launch);
    for kind in [
        FloatKind::F32,
        FloatKind::Flex32,
        FloatKind::TF32,
        FloatKind::BF16,
        FloatKind::F16,
    ] {
        set(ThroughputMode::ComputeDirect {
            dtype: ElemType::Float(kind),
        });
    }
    for access in [MemoryAccess::Copy, MemoryAccess::Read, MemoryAccess::Write] {
        for bits in 0..48 {
            set(ThroughputMode::Memory(MemorySpec::new(access, 1 << bits)));
        }
    }
}
