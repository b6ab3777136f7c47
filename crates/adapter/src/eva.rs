//! EVA: factors along the directions in which a layer's inputs vary, and more
//! rank where those explain more (Paischer et al. 2024, arXiv 2410.07170;
//! `peft/tuners/lora/eva.py` and `peft/utils/incremental_pca.py`).
//!
//! [`Directions::find`] records what reaches each layer, finds the principal
//! directions batch by batch, and distributes the ranks.

use std::collections::{BTreeMap, HashMap};

use burn::{
    module::Module,
    tensor::{DType, Tensor},
};

use crate::{
    AdapterConfig, AdapterError,
    error::device_error,
    init::{InitialFactors, PlannedLayer, Sketched, generator, randomised},
    low_rank::as_f32,
    planned::planned_layers,
    target::is_or_ends_with,
    watch::{Inputs, Seen, watch},
};

/// How alike a component must be to that of the batch before to count as found
/// (the cosine; `tau` of the paper and of PEFT).
const TAU: f64 = 0.99;
/// Power iterations of each decomposition, and columns for each component: those
/// of PEFT's `IncrementalPCA`.
const ITERATIONS: usize = 4;
const WIDTH: usize = 2;

/// The principal components of rows that come batch by batch (Ross et al. 2008,
/// "Incremental Learning for Robust Visual Tracking", as in scikit-learn).
#[derive(Clone, Debug)]
struct Pca {
    n_components: usize,
    n_rows: usize,
    /// `[n_components, width]`, f32.
    components: Option<Tensor<2>>,
    singular_values: Vec<f64>,
    /// `[1, width]`, f32.
    mean: Option<Tensor<2>>,
    /// Squares of all rows' distances from the mean, summed.
    spread: f64,
    /// The cosine of each component with its predecessor.
    alike: Vec<f64>,
}

impl Pca {
    /// For this many components.
    fn new(n_components: usize) -> Self {
        Self {
            n_components,
            n_rows: 0,
            components: None,
            singular_values: Vec::new(),
            mean: None,
            spread: 0.0,
            alike: Vec::new(),
        }
    }

    /// The components so far, `[n_components, width]`, largest first.
    fn components(&self) -> Option<&Tensor<2>> {
        self.components.as_ref()
    }

    /// The share of all variance that each component explains.
    fn explained(&self) -> Vec<f64> {
        let total = self.spread.max(f64::MIN_POSITIVE);
        self.singular_values.iter().map(|s| s * s / total).collect()
    }

    /// Whether the first `n` components have stayed what they were with the last
    /// batch.
    fn has_found(&self, n: usize) -> bool {
        let alike = self.alike.get(..n);
        alike.is_some_and(|alike| alike.iter().all(|cosine| *cosine >= TAU))
    }
}

/// Takes one batch of rows for each of several decompositions, `[rows, width]`
/// with no fewer rows than components; shorter ones are left out.
///
/// # Errors
///
/// [`AdapterError::NotFinite`] with the layer's path, and those of the device.
fn update(batch: Vec<(&str, &mut Pca, Tensor<2>)>) -> Result<(), AdapterError> {
    let mut pcas = Vec::new();
    let mut sketched = Vec::new();
    for (path, pca, rows) in batch {
        let n_new = rows.dims()[0];
        if n_new < pca.n_components {
            continue;
        }
        let rows = as_f32(rows);
        let mean = rows.clone().mean_dim(0);
        let centred = rows - mean.clone();
        let n_all = (pca.n_rows + n_new) as f64;
        pca.spread += scalar(centred.clone().square().sum(), path)?;
        let (matrix, mean) = match (&pca.components, &pca.mean) {
            (Some(components), Some(old)) => {
                let (n_old, n_new) = (pca.n_rows as f64, n_new as f64);
                let between = n_old * n_new / n_all;
                let moved = old.clone() - mean.clone();
                pca.spread += between * scalar(moved.clone().square().sum(), path)?;
                let values: Vec<f32> = pca.singular_values.iter().map(|&s| s as f32).collect();
                let values = Tensor::<1>::from_floats(values.as_slice(), &components.device());
                let known = components.clone() * values.unsqueeze_dim(1);
                let correction = moved.mul_scalar(between.sqrt());
                let all = old.clone().mul_scalar(n_old / n_all) + mean.mul_scalar(n_new / n_all);
                (Tensor::cat(vec![known, centred, correction], 0), all)
            }
            _ => (centred, mean),
        };
        pca.n_rows += n_new;
        pca.mean = Some(mean);
        sketched.push(Sketched {
            matrix,
            path,
            rank: pca.n_components,
            width: WIDTH * pca.n_components,
            rng: generator(42, 0),
        });
        pcas.push((path, pca));
    }
    for ((path, pca), svd) in pcas.into_iter().zip(randomised(sketched, ITERATIONS)?) {
        let mut v = svd.v;
        for mut column in v.column_iter_mut() {
            // The sign with which its largest entry is positive.
            let largest = column.iter().copied().fold(0.0_f64, |largest, x| {
                if x.abs() > largest.abs() { x } else { largest }
            });
            if largest < 0.0 {
                column.neg_mut();
            }
        }
        let device = pca.mean.as_ref().map(Tensor::device).unwrap_or_default();
        let values: Vec<f32> = v.iter().map(|&x| x as f32).collect();
        let data = burn::tensor::TensorData::new(values, [v.ncols(), v.nrows()]);
        let components = Tensor::<2>::from_data(data, (&device, DType::F32));
        pca.alike = match &pca.components {
            None => Vec::new(),
            Some(old) => cosines(&components, old, path)?,
        };
        pca.components = Some(components);
        pca.singular_values = svd.s.iter().copied().collect();
    }
    Ok(())
}

fn scalar(tensor: Tensor<1>, path: &str) -> Result<f64, AdapterError> {
    let value = tensor
        .try_into_scalar::<f32>()
        .map_err(|error| device_error(path, &error))?;
    if value.is_finite() {
        Ok(f64::from(value))
    } else {
        Err(AdapterError::NotFinite(format!("the input of {path}")))
    }
}

/// Of unit rows.
fn cosines(a: &Tensor<2>, b: &Tensor<2>, path: &str) -> Result<Vec<f64>, AdapterError> {
    let n = a.dims()[0].min(b.dims()[0]);
    let products = a.clone().narrow(0, 0, n) * b.clone().narrow(0, 0, n);
    let cosines = products
        .sum_dim(1)
        .try_into_data_as::<f32>()
        .and_then(|data| Ok(data.try_into_vec::<f32>()?))
        .map_err(|error| device_error(path, &error))?;
    Ok(cosines.into_iter().map(f64::from).collect())
}

/// The principal directions of the inputs of each targeted layer.
#[derive(Clone, Debug, Default)]
pub struct Directions {
    /// Those of each different input, under the path of the first layer it goes
    /// to.
    found: BTreeMap<String, Pca>,
    /// The layers in the model's order, each with the path whose directions are
    /// its own.
    layers: Vec<(String, String)>,
    ranks: BTreeMap<String, usize>,
}

/// Gives each layer its rank, with alpha in proportion, and leaves out those
/// that have none.
pub(crate) fn distribute(
    config: &AdapterConfig,
    ranks: &BTreeMap<String, usize>,
    planned: &mut Vec<PlannedLayer>,
) -> Result<(), AdapterError> {
    for layer in planned.iter_mut() {
        let path = &layer.target.path;
        let rank = *ranks.get(path).ok_or_else(|| AdapterError::Impossible {
            path: path.clone(),
            what: "a start from data".to_owned(),
            reason: "its rank is not known".to_owned(),
        })?;
        let alpha = layer.shape.alpha * rank as f64 / layer.shape.rank as f64;
        layer.shape = config.shape(rank, alpha);
    }
    planned.retain(|layer| layer.shape.rank > 0);
    Ok(())
}

/// Which rows of a batch are looked at.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Their numbers, `[batch · seq]` counted through. Those of padding, and of
    /// what is not trained on, are better left out.
    pub chosen: Vec<i32>,
    /// The layers, by name or path, that the model gives no others: where it
    /// picks rows before its last layers, the chosen ones come first there, in
    /// their order, and what follows is padding.
    ///
    /// It has to be said which these are: a padded batch can have as many rows
    /// before the pick as behind it.
    pub picked: Vec<String>,
}

/// The rows to look at.
fn chosen(input: Tensor<2>, rows: &Rows, path: &str) -> Result<Tensor<2>, AdapterError> {
    let [n, _] = input.dims();
    let Rows { chosen, picked } = rows;
    let is_picked = picked.iter().any(|name| is_or_ends_with(path, name));
    let fits = if is_picked {
        chosen.len() <= n
    } else {
        let mut chosen = chosen.iter();
        chosen.all(|row| usize::try_from(*row).is_ok_and(|row| row < n))
    };
    if !fits {
        return Err(AdapterError::Impossible {
            path: path.to_owned(),
            what: "a start by EVA".to_owned(),
            reason: format!("its input has {n} rows, and others were asked for"),
        });
    }
    if is_picked {
        return Ok(input.narrow(0, 0, chosen.len()));
    }
    let indices = Tensor::<1, burn::tensor::Int>::from_ints(chosen.as_slice(), &input.device());
    Ok(input.select(0, indices))
}

/// The layers in order, each with the first one that was given the same.
fn sharing(
    planned: &[PlannedLayer],
    inputs: &BTreeMap<String, Tensor<2>>,
) -> Result<Vec<(String, String)>, AdapterError> {
    let mut first: HashMap<Vec<u8>, String> = HashMap::new();
    let mut layers = Vec::with_capacity(planned.len());
    for layer in planned {
        let path = &layer.target.path;
        let Some(input) = inputs.get(path) else {
            return Err(AdapterError::Impossible {
                path: path.clone(),
                what: "a start by EVA".to_owned(),
                reason: "the model was run without it".to_owned(),
            });
        };
        let data = input
            .clone()
            .try_into_data()
            .map_err(|error| device_error(path, &error))?;
        let owner = first
            .entry(data.as_bytes().to_vec())
            .or_insert_with(|| path.clone());
        layers.push((path.clone(), owner.clone()));
    }
    Ok(layers)
}

impl Directions {
    /// Runs a model over batches until the directions of every layer stay what
    /// they are, or `max_batches` have been seen.
    ///
    /// `run` runs its module on the batch of the given number, counted from
    /// zero, and returns which rows of the layers' inputs to look at. A layer gets
    /// at most `rho` times its configured rank.
    ///
    /// # Errors
    ///
    /// As [`attach`](crate::attach), and what `run` returns.
    pub fn find<M: Module, E: From<AdapterError>>(
        module: M,
        config: &AdapterConfig,
        rho: f64,
        max_batches: usize,
        mut run: impl FnMut(&M, usize) -> Result<Rows, E>,
    ) -> Result<Self, E> {
        let planned = planned_layers(&module, config)?;
        let budget = planned.iter().map(|layer| layer.shape.rank).sum();
        let inputs = Inputs::default();
        let watched = watch(module, &planned, &Seen::Inputs(inputs.clone()))?;
        let mut all = Self::default();
        let mut ranks = BTreeMap::new();
        for batch in 0..max_batches {
            let rows = run(&watched, batch)?;
            let mut given = inputs.take();
            for (path, input) in &mut given {
                *input = chosen(input.clone(), &rows, path)?;
            }
            if batch == 0 {
                all.layers = sharing(&planned, &given)?;
                for layer in &planned {
                    let most = (layer.shape.rank as f64 * rho).round() as usize;
                    let most = most.min(layer.target.dims()[0]);
                    let path = &layer.target.path;
                    let owner = all.owner(path).unwrap_or(path).to_owned();
                    let pca = all.found.entry(owner).or_insert_with(|| Pca::new(0));
                    pca.n_components = pca.n_components.max(most);
                }
                ranks = all
                    .found
                    .iter()
                    .map(|(path, pca)| (path.clone(), pca.n_components))
                    .collect();
            }
            let unsettled = all.found.iter_mut().filter(|(path, pca)| {
                let rank = ranks.get(*path).copied().unwrap_or(0);
                !pca.has_found(rank)
            });
            let batch = unsettled.filter_map(|(path, pca)| {
                let input = given.remove(path)?;
                Some((path.as_str(), pca, input))
            });
            update(batch.collect())?;
            if all.found.values().all(|pca| pca.components().is_some()) {
                ranks = all.ranks(budget);
                if all.is_settled(&ranks) {
                    break;
                }
            }
        }
        all.ranks = ranks;
        Ok(all)
    }

    /// Whether the directions of every layer had stayed what they were.
    pub fn settled(&self) -> bool {
        self.is_settled(&self.ranks)
    }

    /// The rank of each layer, zero included.
    pub fn ranks_found(&self) -> &BTreeMap<String, usize> {
        &self.ranks
    }

    fn owner(&self, path: &str) -> Option<&str> {
        let found = self.layers.iter().find(|(of, _)| of == path);
        found.map(|(_, owner)| owner.as_str())
    }

    /// The rank of each layer: the components of all layers compete by the
    /// variance that they explain, for as many places as the configured ranks
    /// add up to. Zero is possible.
    fn ranks(&self, budget: usize) -> BTreeMap<String, usize> {
        let mut all: Vec<(f64, usize)> = Vec::new();
        for (index, (_, owner)) in self.layers.iter().enumerate() {
            let explained = self.found.get(owner).map(Pca::explained);
            all.extend(explained.into_iter().flatten().map(|share| (share, index)));
        }
        // Stable, so that equal shares are taken in the model's order.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut counts = vec![0; self.layers.len()];
        for (_, index) in all.into_iter().take(budget) {
            counts[index] += 1;
        }
        let paths = self.layers.iter().map(|(path, _)| path.clone());
        let mut ranks: BTreeMap<String, usize> = paths.zip(counts).collect();
        // Of layers with one input, the first gets the most, as in PEFT.
        for (path, owner) in &self.layers {
            let (rank, first) = (ranks[path], ranks[owner]);
            if rank > first {
                ranks.insert(owner.clone(), rank);
                ranks.insert(path.clone(), first);
            }
        }
        ranks
    }

    fn is_settled(&self, ranks: &BTreeMap<String, usize>) -> bool {
        self.found.iter().all(|(path, pca)| {
            let rank = ranks.get(path).copied().unwrap_or(0);
            pca.has_found(rank)
        })
    }

    /// `A` along the layer's directions, `B` zero.
    pub(crate) fn start(&self, layer: &PlannedLayer) -> Result<InitialFactors, AdapterError> {
        let (path, rank) = (&layer.target.path, layer.shape.rank);
        let components = self
            .owner(path)
            .and_then(|owner| self.found.get(owner)?.components())
            .filter(|components| components.dims()[0] >= rank)
            .ok_or_else(|| AdapterError::Impossible {
                path: path.clone(),
                what: "a start by EVA".to_owned(),
                reason: format!(
                    "no batch had the {rank} tokens or more that its {rank} directions need: \
                     give longer batches"
                ),
            })?;
        let [_, d_out] = layer.target.dims();
        let device = layer.target.device();
        Ok(InitialFactors {
            a: components.clone().narrow(0, 0, rank).transpose(),
            b: Tensor::zeros([rank, d_out], (&device, DType::F32)),
            anchored: false,
        })
    }
}
