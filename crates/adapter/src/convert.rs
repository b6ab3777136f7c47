//! Adapters into other adapters: fewer ranks, several in one, another form.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use nalgebra::DMatrix;

use crate::{
    AdapterConfig, AdapterError, Method, PeftAdapter,
    attach::check_rank,
    init::{PlannedLayer, Svd, Which, initial_factors, svd, thin_q},
    peft::Layer,
    saved::Stored,
    target::layers,
};

/// What a smaller rank has cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// How far the update moved, `‖Δ − Δ'‖ / ‖Δ‖` in the Frobenius norm, all
    /// layers together.
    pub error: f64,
    /// The layer that moved furthest, and how far.
    pub worst: (String, f64),
}

/// How several adapters become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// Ranks side by side: exactly the weighted sum of the updates
    /// (PEFT's `"cat"`).
    Cat,
    /// Factors summed, which keeps the rank and adds cross terms: not the sum of
    /// the updates (PEFT's `"linear"`).
    Linear,
}

/// Whether a number can be an adapter's weight among others: zero leaves it
/// out, and anything else must be a number in f32 too.
pub fn is_weight(weight: f64) -> bool {
    weight == 0.0 || (weight as f32).is_normal()
}

/// What [`is_weight`] allows, in words.
pub const WEIGHTS: &str = "0 or a number that float32 can hold, 1.2e-38 to 3.4e38 in size";

/// Computed in f64, a factor may be beyond f32.
fn refuse_not_finite(path: &str, layer: &Layer) -> Result<(), AdapterError> {
    let mut all = layer.a.values.iter().chain(&layer.b.values);
    if all.all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(AdapterError::Impossible {
        path: path.to_owned(),
        what: "this result".to_owned(),
        reason: "its factors are beyond what float32 can hold, 3.4e38: give smaller weights"
            .to_owned(),
    })
}

impl PeftAdapter {
    /// The adapter with at most this rank in each layer: the best approximation
    /// of each update, by its singular value decomposition.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] for what is not plain LoRA;
    /// [`AdapterError::OutOfRange`] for rank 0.
    pub fn reduced(mut self, rank: usize) -> Result<(Self, Reduction), AdapterError> {
        if rank == 0 {
            return Err(AdapterError::OutOfRange {
                key: "rank",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        self.refuse_unless_plain("a smaller rank")?;
        let (mut lost, mut all) = (0.0, 0.0);
        let mut worst = (String::new(), 0.0);
        for (path, layer) in &mut self.layers {
            let (kept, cut) = reduce(layer, rank);
            refuse_not_finite(path, layer)?;
            // The scale is the same before and after, and weighs layers against each other.
            let weight = layer.scale * layer.scale;
            lost += weight * cut;
            all += weight * (kept + cut);
            let error = (cut / (kept + cut).max(f64::MIN_POSITIVE)).sqrt();
            if error >= worst.1 {
                worst = (path.clone(), error);
            }
        }
        self.settle_patterns();
        let error = (lost / f64::max(all, f64::MIN_POSITIVE)).sqrt();
        Ok((self, Reduction { error, worst }))
    }

    /// Several adapters as one, each with a weight.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] names what is not plain LoRA, and, for
    /// [`Combination::Linear`], a layer that one of them lacks or has with
    /// another rank; [`AdapterError::OutOfRange`] if there is none, or for a
    /// weight that is none ([`is_weight`]); a sum that f32 does not hold is
    /// impossible too.
    pub fn combined(
        adapters: Vec<(Self, f64)>,
        combination: Combination,
    ) -> Result<Self, AdapterError> {
        for (adapter, weight) in &adapters {
            adapter.refuse_unless_plain("a combination")?;
            if !is_weight(*weight) {
                return Err(AdapterError::OutOfRange {
                    key: "weights",
                    found: format!("{weight:?}"),
                    expected: WEIGHTS,
                });
            }
        }
        let paths: BTreeSet<String> = adapters
            .iter()
            .flat_map(|(adapter, _)| adapter.layers.keys().cloned())
            .collect();
        let mut combined = BTreeMap::new();
        for path in paths {
            let parts: Vec<(&Layer, f64)> = adapters
                .iter()
                .filter_map(|(adapter, weight)| Some((adapter.layers.get(&path)?, *weight)))
                .collect();
            let layer = match combination {
                Combination::Cat => side_by_side(&path, &parts)?,
                Combination::Linear => summed(&path, &parts, adapters.len())?,
            };
            refuse_not_finite(&path, &layer)?;
            combined.insert(path, layer);
        }
        let notes = adapters.iter().map(|(adapter, _)| adapter.notes.clone());
        let mut notes = notes.collect::<Vec<_>>().concat();
        let fingerprints: BTreeSet<_> = adapters
            .iter()
            .map(|(adapter, _)| adapter.base_fingerprint.clone())
            .collect();
        let mut base_fingerprint = None;
        if fingerprints.len() > 1 {
            notes.push(
                "the adapters were not all trained on the same files of weights: if those are \
                 different weights, the combination means nothing"
                    .to_owned(),
            );
        } else {
            base_fingerprint = fingerprints.into_iter().next().flatten();
        }
        let packings: BTreeSet<_> = adapters
            .iter()
            .map(|(adapter, _)| adapter.base_packing.clone())
            .collect();
        let mut base_packing = None;
        if packings.len() > 1 {
            notes.push(
                "the adapters were trained on the same base packed in different formats: their \
                 updates are measured from slightly different weights"
                    .to_owned(),
            );
        } else {
            base_packing = packings.into_iter().next().flatten();
        }
        let Some((first, _)) = adapters.into_iter().next() else {
            return Err(AdapterError::OutOfRange {
                key: "adapters",
                found: "none".to_owned(),
                expected: "at least one",
            });
        };
        let mut adapter = Self {
            config: AdapterConfig {
                rslora: false,
                // Paths, since no model is at hand to tell whether names would do.
                targets: combined.keys().cloned().collect(),
                ..first.config.clone()
            },
            layers: combined,
            notes,
            base_fingerprint,
            base_packing,
            rules: None,
            ..first
        };
        adapter.settle_patterns();
        Ok(adapter)
    }

    /// Plain LoRA of twice the rank, as [`PeftForm::Plain`](crate::PeftForm::Plain)
    /// writes it, back into PEFT's own form of `method`.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] if the second half of a layer's ranks is not
    /// the method's start on this module's weights.
    pub fn into_native<M: Module>(
        mut self,
        module: &M,
        method: Method,
    ) -> Result<Self, AdapterError> {
        self.refuse_unless_plain("PEFT's own form")?;
        let impossible = |path: &str, reason: String| AdapterError::Impossible {
            path: path.to_owned(),
            what: format!("PEFT's own form of `{}`", method.name()),
            reason,
        };
        if !matches!(method, Method::Olora | Method::Pissa) {
            let reason = "PEFT has such a form of `olora` and `pissa` only";
            return Err(impossible("the adapter", reason.to_owned()));
        }
        let targets: BTreeMap<_, _> = layers(module)
            .into_iter()
            .map(|target| (target.path.clone(), target))
            .collect();
        let mut planned = Vec::with_capacity(self.layers.len());
        for (path, layer) in &self.layers {
            let target = targets
                .get(path)
                .ok_or_else(|| impossible(path, "the model has no such layer".to_owned()))?;
            if !layer.rank.is_multiple_of(2) {
                let reason = format!("its rank is {}, which has no halves", layer.rank);
                return Err(impossible(path, reason));
            }
            check_rank(target, layer.rank / 2)?;
            let mut shape = self.config.shape(layer.rank / 2, 1.0);
            shape.scale = layer.scale;
            planned.push(PlannedLayer {
                target: target.clone(),
                shape,
            });
        }
        let starts = initial_factors(method, None, &planned, 0, &mut |_, _| {})?;
        for (start, (path, layer)) in starts.into_iter().zip(&mut self.layers) {
            let half = layer.rank / 2;
            let [a, second_a] = split_rows(&layer.a, half);
            let [b, second_b] = split_columns(&layer.b, half);
            let a0 = Stored::of(start.a, true, path)?;
            let b0 = Stored::of(start.b.neg(), true, path)?;
            // Products, which do not depend on the signs of singular vectors.
            let apart = product_distance([&second_a, &second_b], [&a0, &b0]);
            if apart > 1e-4 {
                let reason = format!(
                    "the second half of its ranks is not that method's start on this base \
                     (they differ by {apart:.1e} of its size)"
                );
                return Err(impossible(path, reason));
            }
            (layer.a, layer.b, layer.rank) = (a, b, half);
        }
        self.config.method = method;
        self.settle_patterns();
        Ok(self)
    }

    fn refuse_unless_plain(&self, purpose: &str) -> Result<(), AdapterError> {
        // What follows computes with the rank that the configuration says, embeddings too.
        self.ensure_sound()?;
        // Embeddings have factors like any other layer.
        let linear = Self {
            layers: self
                .layers
                .iter()
                .filter(|(_, layer)| layer.kind == crate::Kind::Linear)
                .map(|(path, layer)| (path.clone(), layer.clone()))
                .collect(),
            ..self.clone()
        };
        linear.plain_layers(purpose).map(|_| ())
    }
}

fn matrix(stored: &Stored) -> DMatrix<f64> {
    let values = stored.values.iter().map(|&x| f64::from(x));
    DMatrix::from_row_iterator(stored.shape[0], stored.shape[1], values)
}

fn stored(matrix: &DMatrix<f64>) -> Stored {
    Stored {
        shape: vec![matrix.nrows(), matrix.ncols()],
        // nalgebra is column-major.
        values: matrix.transpose().iter().map(|&x| x as f32).collect(),
    }
}

/// Cuts a layer's rank; returns the squares of the singular values kept and cut.
fn reduce(layer: &mut Layer, rank: usize) -> (f64, f64) {
    let (a, b) = (matrix(&layer.a), matrix(&layer.b));
    let (r, d_in, d_out) = (a.nrows(), a.ncols(), b.nrows());
    // Δ = B·A = Q_b·(R_b·R_aᵀ)·Q_aᵀ, of which only the small middle is decomposed.
    let Svd { u, s, v } = if r <= d_in.min(d_out) {
        let (q_a, q_b) = (thin_q(a.transpose()), thin_q(b.clone()));
        let middle = q_b.tr_mul(&b) * (&a * &q_a);
        let Svd { u, s, v } = svd(&middle, Which::Largest, r);
        Svd {
            u: q_b * u,
            s,
            v: q_a * v,
        }
    } else {
        svd(&(&b * &a), Which::Largest, d_in.min(d_out))
    };
    let squares = |range: std::ops::Range<usize>| s.as_slice()[range].iter().map(|s| s * s).sum();
    let kept = rank.min(s.len());
    let result = (squares(0..kept), squares(kept..s.len()));
    if kept < layer.rank {
        let roots = DMatrix::from_diagonal(&s.rows(0, kept).map(f64::sqrt));
        layer.a = stored(&(&roots * v.columns(0, kept).transpose()));
        layer.b = stored(&(u.columns(0, kept) * &roots));
        layer.rank = kept;
    }
    result
}

fn side_by_side(path: &str, parts: &[(&Layer, f64)]) -> Result<Layer, AdapterError> {
    let [d_in, d_out] = shared_dims(path, parts)?;
    let rank = parts.iter().map(|(layer, _)| layer.rank).sum();
    let mut a = DMatrix::zeros(rank, d_in);
    let mut b = DMatrix::zeros(d_out, rank);
    let mut at = 0;
    for (layer, weight) in parts {
        let scaled = matrix(&layer.a) * (weight * layer.scale);
        a.rows_mut(at, layer.rank).copy_from(&scaled);
        b.columns_mut(at, layer.rank).copy_from(&matrix(&layer.b));
        at += layer.rank;
    }
    Ok(whole(parts, rank, &a, &b))
}

fn summed(path: &str, parts: &[(&Layer, f64)], n_all: usize) -> Result<Layer, AdapterError> {
    let [d_in, d_out] = shared_dims(path, parts)?;
    let rank = parts.first().map_or(0, |(layer, _)| layer.rank);
    if parts.len() < n_all || parts.iter().any(|(layer, _)| layer.rank != rank) {
        return Err(AdapterError::Impossible {
            path: path.to_owned(),
            what: "a linear combination".to_owned(),
            reason: "not every adapter has it with the same rank: combine them by `cat`".to_owned(),
        });
    }
    let mut a = DMatrix::zeros(rank, d_in);
    let mut b = DMatrix::zeros(d_out, rank);
    for (layer, weight) in parts {
        let factor = weight * layer.scale;
        let root = factor.abs().sqrt();
        a += matrix(&layer.a) * (root * factor.signum());
        b += matrix(&layer.b) * root;
    }
    Ok(whole(parts, rank, &a, &b))
}

fn shared_dims(path: &str, parts: &[(&Layer, f64)]) -> Result<[usize; 2], AdapterError> {
    let dims = |layer: &Layer| [layer.a.shape[1], layer.b.shape[0]];
    let first = parts.first().map_or([0, 0], |(layer, _)| dims(layer));
    match parts.iter().find(|(layer, _)| dims(layer) != first) {
        None => Ok(first),
        Some((other, _)) => Err(AdapterError::Impossible {
            path: path.to_owned(),
            what: "a combination".to_owned(),
            reason: format!(
                "one adapter's layer is {first:?} (in, out) and another's {:?}: they are for \
                 different models",
                dims(other)
            ),
        }),
    }
}

fn whole(parts: &[(&Layer, f64)], rank: usize, a: &DMatrix<f64>, b: &DMatrix<f64>) -> Layer {
    Layer {
        kind: parts
            .first()
            .map_or(crate::Kind::Linear, |(layer, _)| layer.kind),
        rank,
        a: stored(a),
        b: stored(b),
        magnitude: None,
        scale: 1.0,
        anchor: None,
    }
}

fn split_rows(stored: &Stored, at: usize) -> [Stored; 2] {
    let (rows, columns) = (stored.shape[0], stored.shape[1]);
    let (first, second) = stored.values.split_at(at * columns);
    let part = |values: &[f32], rows| Stored {
        shape: vec![rows, columns],
        values: values.to_vec(),
    };
    [part(first, at), part(second, rows - at)]
}

fn split_columns(from: &Stored, at: usize) -> [Stored; 2] {
    let all = matrix(from);
    let columns = all.ncols();
    let part = |first, n| stored(&all.columns(first, n).into_owned());
    [part(0, at), part(at, columns - at)]
}

/// How far apart two products `B·A` are, relative to the second.
fn product_distance([a, b]: [&Stored; 2], [a0, b0]: [&Stored; 2]) -> f64 {
    let product = |a: &Stored, b: &Stored| matrix(b) * matrix(a);
    let expected = product(a0, b0);
    (product(a, b) - &expected).norm() / expected.norm().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{generator, normal_matrix};

    fn layer(rank: usize, d_in: usize, d_out: usize, seed: u64) -> Layer {
        let mut rng = generator(seed, 0);
        Layer {
            kind: crate::Kind::Linear,
            rank,
            a: stored(&normal_matrix(rank, d_in, &mut rng)),
            b: stored(&normal_matrix(d_out, rank, &mut rng)),
            magnitude: None,
            scale: 0.5,
            anchor: None,
        }
    }

    fn update(layer: &Layer) -> DMatrix<f64> {
        matrix(&layer.b) * matrix(&layer.a) * layer.scale
    }

    #[test]
    fn a_reduction_keeps_what_it_says_it_keeps() {
        for (d_in, d_out) in [(20, 12), (5, 20)] {
            let whole = layer(8, d_in, d_out, 1);
            let mut small = whole.clone();
            let (kept, cut) = reduce(&mut small, 3);
            assert_eq!((small.rank, small.a.shape[0], small.b.shape[1]), (3, 3, 3));
            let lost = (update(&whole) - update(&small)).norm_squared();
            assert!((lost - 0.25 * cut).abs() < 1e-4 * cut, "{lost} {cut}");
            assert!((update(&whole).norm_squared() - 0.25 * (kept + cut)).abs() < 1e-4 * kept);
            // No other update of this rank is nearer.
            let best = svd(&update(&whole), Which::Largest, d_in.min(d_out));
            let least: f64 = best.s.iter().skip(3).map(|s| s * s).sum();
            assert!((lost - least).abs() < 1e-4 * least);
        }
    }

    #[test]
    fn a_reduction_to_the_rank_it_has_loses_nothing() {
        let mut same = layer(4, 9, 7, 2);
        let before = same.clone();
        let (_, cut) = reduce(&mut same, 6);
        assert!(cut == 0.0 && same.a == before.a && same.b == before.b);
    }

    #[test]
    fn side_by_side_is_the_weighted_sum() {
        let (first, second) = (layer(2, 6, 5, 3), layer(3, 6, 5, 4));
        let both = side_by_side("x", &[(&first, 0.7), (&second, -0.3)]).unwrap();
        assert_eq!(both.rank, 5);
        let expected = update(&first) * 0.7 - update(&second) * 0.3;
        assert!((update(&both) - expected).amax() < 1e-5);
    }

    #[test]
    fn a_linear_combination_of_one_is_itself_and_unequal_ranks_are_refused() {
        let (first, second) = (layer(2, 6, 5, 3), layer(3, 6, 5, 4));
        let one = summed("x", &[(&first, -2.0)], 1).unwrap();
        assert!((update(&one) + update(&first) * 2.0).amax() < 1e-5);
        let error = summed("up_proj", &[(&first, 1.0), (&second, 1.0)], 2).unwrap_err();
        assert!(error.to_string().contains("up_proj") && error.to_string().contains("`cat`"));
        let other = layer(2, 7, 5, 3);
        let error = side_by_side("up_proj", &[(&first, 1.0), (&other, 1.0)]).unwrap_err();
        assert!(error.to_string().contains("different models"), "{error}");
    }

    #[test]
    fn weights_that_no_one_means_and_sums_beyond_f32_are_refused() {
        for weight in [0.0, 1.0, -0.5, 1e-6] {
            assert!(is_weight(weight), "{weight}");
        }
        for weight in [1e300, -1e39, 1e-300, f64::NAN, f64::INFINITY] {
            assert!(!is_weight(weight), "{weight}");
        }
        let mut large = layer(2, 6, 5, 3);
        large.a.values[7] = 3e38;
        let sum = side_by_side("Oxmere", &[(&large, 100.0)]).unwrap();
        let error = refuse_not_finite("Oxmere", &sum).unwrap_err();
        assert!(error.to_string().contains("Oxmere"), "{error}");
    }
}
