//! From a configuration to the layers it means, each with its rank and scale.

use burn::module::Module;

use crate::{
    AdapterConfig, AdapterError, LayerShape, Method, Target,
    attach::{check_kind, check_rank},
    init::PlannedLayer,
    resolve,
    target::{Kind, Patterns, layers},
};

/// The ranks and alphas of single layers, ready to be asked for.
pub(crate) struct Shapes<'a> {
    config: &'a AdapterConfig,
    ranks: Patterns,
    alphas: Patterns,
}

impl<'a> Shapes<'a> {
    pub(crate) fn new(config: &'a AdapterConfig) -> Result<Self, AdapterError> {
        Ok(Self {
            config,
            ranks: Patterns::new(config.rank_pattern.keys())?,
            alphas: Patterns::new(config.alpha_pattern.keys())?,
        })
    }

    /// The rank and scale of a layer.
    pub(crate) fn of(&self, path: &str, kind: Kind) -> Result<LayerShape, AdapterError> {
        let rank = one(&self.ranks, "rank_pattern", path, kind)?;
        let rank = rank.map_or(self.config.rank, |pattern| {
            self.config.rank_pattern[pattern]
        });
        let alpha = one(&self.alphas, "alpha_pattern", path, kind)?;
        let alpha = alpha.map_or(self.config.alpha, |pattern| {
            self.config.alpha_pattern[pattern]
        });
        Ok(self.config.shape(rank, alpha))
    }

    /// The scale of a layer that has been adapted with this rank.
    pub(crate) fn scale(&self, path: &str, kind: Kind, rank: usize) -> Result<f64, AdapterError> {
        let shape = self.of(path, kind)?;
        if self.config.method != Method::Eva {
            return Ok(shape.scale);
        }
        // Ranks were redistributed, with alpha in proportion.
        let alpha = shape.alpha * rank as f64 / shape.rank as f64;
        Ok(self.config.shape(rank, alpha).scale)
    }
}

/// The only pattern that a layer matches, if it matches any.
fn one<'p>(
    patterns: &'p Patterns,
    key: &str,
    path: &str,
    kind: Kind,
) -> Result<Option<&'p str>, AdapterError> {
    let mut matching = patterns.matching(path, kind);
    match (matching.next(), matching.next()) {
        (Some(first), Some(second)) => Err(AdapterError::Impossible {
            path: path.to_owned(),
            what: format!("two entries of `{key}`"),
            reason: format!("both `{first}` and `{second}` name it: leave one"),
        }),
        (first, _) => Ok(first),
    }
}

/// The layers that a configuration means, each with a rank that fits it.
pub(crate) fn planned_layers<M: Module>(
    module: &M,
    config: &AdapterConfig,
) -> Result<Vec<PlannedLayer>, AdapterError> {
    let planned = planned(module, config)?.into_iter();
    planned
        .map(|(target, shape)| {
            check_rank(&target, shape.rank)?;
            Ok(PlannedLayer { target, shape })
        })
        .collect()
}

/// The layers that a configuration means, with their ranks, in the module's own
/// order. Whether a rank fits its weight is not looked at, so that a module of
/// the same layers with other weights will do.
///
/// # Errors
///
/// As [`attach`](crate::attach), but for [`AdapterError::RankTooLarge`].
pub fn planned<M: Module>(
    module: &M,
    config: &AdapterConfig,
) -> Result<Vec<(Target, LayerShape)>, AdapterError> {
    config.validate()?;
    let mut targets = resolve(module, &config.targets, &config.exclude)?;
    if let Some(numbers) = &config.layers {
        let n_blocks = layers(module)
            .iter()
            .filter_map(|layer| block_number(&layer.path))
            .max()
            .map_or(0, |last| last + 1);
        if let Some(missing) = numbers.iter().find(|number| **number >= n_blocks) {
            return Err(AdapterError::NoTargets(format!(
                "`layers` names block {missing}, but the model's are numbered from 0 to {}",
                n_blocks.saturating_sub(1)
            )));
        }
        targets.retain(|target| {
            block_number(&target.path).is_none_or(|number| numbers.contains(&number))
        });
        if targets.is_empty() {
            return Err(AdapterError::NoTargets(
                "`layers` leaves none of the targets".to_owned(),
            ));
        }
    }
    let shapes = Shapes::new(config)?;
    for (key, patterns) in [
        ("rank_pattern", &shapes.ranks),
        ("alpha_pattern", &shapes.alphas),
    ] {
        if let Some(unmatched) = patterns.unmatched(&targets).first() {
            return Err(AdapterError::NoTargets(format!(
                "`{unmatched}` in `{key}` names none of the targets"
            )));
        }
    }
    targets
        .into_iter()
        .map(|target| {
            check_kind(&target, config.method, config.dora)?;
            let shape = shapes.of(&target.path, target.kind)?;
            Ok((target, shape))
        })
        .collect()
}

/// The first number in a path: `model.layers.3.mlp.up_proj` is in block 3.
fn block_number(path: &str) -> Option<usize> {
    path.split('.').find_map(|name| name.parse().ok())
}
