//! Everything that is known of a run before its weights are in memory.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use burn::{
    data::dataset::Dataset,
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use olora_adapter::{
    AdapterConfig, AdapterError, Directions, Method, Placement, Rows, attach, attach_along,
    attach_empty, planned, to_dtype,
};
use olora_data::{Batch, Padding, Sample, Schedule, Tokenizer};
use olora_model::{Llama, ModelConfig, WeightType, load};

use crate::{
    Event, Observer, Precision, Recipe, TrainError, estimate::Load, passes::loss_sum,
    recipe::Weights, run_data::Data,
};

/// A recipe with its data, its steps and what it will take.
pub(crate) struct Prepared {
    /// With everything decided that the device decides.
    pub(crate) recipe: Recipe,
    pub(crate) config: ModelConfig,
    pub(crate) precision: Precision,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) data: Data,
    pub(crate) padding: Padding,
    pub(crate) steps: Steps,
    pub(crate) load: Load,
}

impl Prepared {
    pub(crate) fn new(
        recipe: &Recipe,
        device: &Device,
        accelerator: bool,
        observer: &dyn Observer,
    ) -> Result<Self, TrainError> {
        let config = ModelConfig::from_path(&recipe.model.path)?;
        let (recipe, precision) = recipe.resolved(&config, device, accelerator)?;
        let tokenizer = Tokenizer::from_path(&recipe.model.path)?;
        let data = Data::load(&recipe, &tokenizer, observer)?;
        data.check_against(&config, &tokenizer)?;
        let padding = Padding {
            id: tokenizer.pad_id(),
            multiple: recipe.training.pad_to_multiple_of.unwrap_or(1),
        };
        let steps = Steps::new(&recipe, &data.train, padding)?;
        let counts = Counts::new(&recipe, &config)?;
        let samples = data
            .train
            .iter()
            .chain(data.validation.iter().flat_map(|all| all.iter()));
        // Four bytes and one for each token, and two vectors' headers.
        let samples = samples
            .map(|sample| 5 * sample.tokens.len() as u64 + 48)
            .sum();
        let load = Load {
            n_params: counts.params,
            n_trained_params: counts.trained,
            n_anchor_params: counts.anchor,
            n_adapted_layers: counts.adapted_layers,
            adapted_output: counts.adapted_output,
            output_trains: counts.output_trains,
            dora: recipe.adapter.dora,
            dropout: recipe.adapter.dropout > 0.0,
            accumulates: recipe.training.accumulation > 1,
            rank: counts.rank,
            base: precision.base,
            compute: precision.compute,
            recompute: recipe.training.recompute,
            accelerator,
            rows: steps.largest.n_rows,
            seq: steps.largest.seq_len,
            targets: steps.largest.n_targets,
            largest_trained: counts.largest_trained,
            samples,
            tokenizer: tokenizer.n_bytes() as u64,
        };
        Ok(Self {
            recipe,
            config,
            precision,
            tokenizer,
            data,
            padding,
            steps,
            load,
        })
    }
}

/// Parameters of a model and its adapter.
struct Counts {
    params: usize,
    trained: usize,
    anchor: usize,
    adapted_layers: usize,
    /// Whether the vocabulary projection is adapted.
    adapted_output: bool,
    /// Whether the vocabulary projection trains whole.
    output_trains: bool,
    /// The largest rank.
    rank: usize,
    /// Elements of the largest tensor that trains.
    largest_trained: usize,
}

impl Counts {
    /// Counted from shapes: no weight is made or read.
    fn new(recipe: &Recipe, config: &ModelConfig) -> Result<Self, TrainError> {
        #[allow(
            clippy::default_trait_access,
            reason = "any device will do: nothing is put on it"
        )]
        let device: Device = Default::default();
        let model = config.init(&device);
        let base = model.num_params();
        let mut shapes = Shapes::default();
        model.visit(&mut shapes);
        let Some(adapter) = recipe.adapter.config(model.lm_head.is_some()) else {
            return Ok(Self {
                params: base,
                trained: base,
                anchor: 0,
                adapted_layers: 0,
                adapted_output: false,
                output_trains: true,
                rank: 0,
                largest_trained: shapes.largest(),
            });
        };
        // Finding layers by name looks at weights, so it is done on a model of the same layers
        // whose weights are as small as can be.
        let small = config.miniature().init(&device);
        let targets = planned(&small, &adapter)?;
        let (mut factors, mut magnitudes, mut largest_trained, mut rank) = (0, 0, 0, 0);
        for (target, shape) in &targets {
            let &[d_in, d_out] = shapes.of(&format!("{}.weight", target.path)) else {
                continue;
            };
            if shape.rank > d_in.min(d_out) {
                return Err(TrainError::Adapter(AdapterError::RankTooLarge {
                    rank: shape.rank,
                    path: target.path.clone(),
                    d_in,
                    d_out,
                }));
            }
            factors += shape.rank * (d_in + d_out);
            magnitudes += if adapter.dora { d_out } else { 0 };
            largest_trained = largest_trained.max(shape.rank * d_in.max(d_out));
            rank = rank.max(shape.rank);
        }
        let saved = shapes.saved(&adapter.modules_to_save);
        if model.lm_head.is_none() && saved.iter().any(|(path, _)| path.contains("embed_tokens")) {
            return Err(TrainError::Adapter(AdapterError::Impossible {
                path: "embed_tokens".to_owned(),
                what: "its place in `modules_to_save`".to_owned(),
                reason: "it is tied to `lm_head`: trained whole, it would be both here, and the embedding \
                         alone where PEFT loads it. Put an adapter on it instead (`adapter.targets`)"
                    .to_owned(),
            }));
        }
        let n_saved: usize = saved.iter().map(|(_, n)| n).sum();
        largest_trained = saved
            .iter()
            .map(|(_, n)| *n)
            .fold(largest_trained, usize::max);
        let anchored = adapter.method.is_anchored() && adapter.placement == Placement::Anchored;
        Ok(Self {
            params: base + factors + magnitudes,
            trained: factors + magnitudes + n_saved,
            anchor: if anchored { factors } else { 0 },
            adapted_layers: targets.len(),
            largest_trained,
            adapted_output: targets.iter().any(|(target, _)| target.path == "lm_head"),
            output_trains: saved.iter().any(|(path, _)| path.starts_with("lm_head")),
            rank,
        })
    }
}

/// The shapes of all parameters, by path.
#[derive(Default)]
struct Shapes {
    path: Vec<String>,
    found: Vec<(String, Vec<usize>)>,
}

impl Shapes {
    fn of(&self, path: &str) -> &[usize] {
        let found = self.found.iter().find(|(found, _)| found == path);
        found.map_or(&[], |(_, dims)| dims)
    }

    /// The parameters of the modules to save, with their elements.
    fn saved(&self, names: &[String]) -> Vec<(&str, usize)> {
        let is_in = |path: &str, name: &str| {
            let dotted = format!(".{path}.");
            dotted.contains(&format!(".{name}."))
        };
        let all = self.found.iter();
        all.filter(|(path, _)| names.iter().any(|name| is_in(path, name)))
            .map(|(path, dims)| (path.as_str(), dims.iter().product()))
            .collect()
    }

    fn largest(&self) -> usize {
        let sizes = self.found.iter().map(|(_, dims)| dims.iter().product());
        sizes.max().unwrap_or(0)
    }
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().to_vec();
        self.found.push((self.path.join("."), shape));
    }
}

/// The run's micro-batches, in order.
pub(crate) fn schedule(
    recipe: &Recipe,
    samples: &Arc<[Sample]>,
    n_batches: usize,
) -> Result<Schedule, TrainError> {
    let (samples, batch_size) = (samples.clone(), recipe.training.batch_size);
    Ok(if recipe.data.packing {
        let max_length = recipe.data.max_length;
        Schedule::packed(samples, batch_size, max_length, recipe.seed, n_batches)?
    } else {
        Schedule::new(samples, batch_size, recipe.seed, n_batches)?
    })
}

/// The size of a micro-batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BatchSize {
    pub(crate) n_rows: usize,
    pub(crate) seq_len: usize,
    /// Trained positions, padding included.
    pub(crate) n_targets: usize,
    /// Inputs that are not padding.
    pub(crate) n_tokens: usize,
}

impl BatchSize {
    pub(crate) fn of(batch: &Batch) -> Self {
        Self {
            n_rows: batch.n_rows,
            seq_len: batch.seq_len,
            n_targets: batch.targets.len(),
            n_tokens: batch.n_tokens,
        }
    }

    /// Inputs, padding included.
    pub(crate) fn n_inputs(self) -> usize {
        self.n_rows * self.seq_len
    }
}

/// How many steps, over how many micro-batches of which size.
pub(crate) struct Steps {
    pub(crate) total: usize,
    pub(crate) n_batches: usize,
    pub(crate) batches_per_epoch: usize,
    /// The batch with most inputs of those looked at, which are the first
    /// epoch's or as many as there are.
    pub(crate) largest: BatchSize,
    /// Inputs of those, padding included and not.
    pub(crate) n_inputs: usize,
    pub(crate) n_tokens: usize,
    /// How many were looked at.
    pub(crate) n_seen: usize,
}

impl Steps {
    fn new(recipe: &Recipe, samples: &Arc<[Sample]>, padding: Padding) -> Result<Self, TrainError> {
        let training = &recipe.training;
        let batches_per_epoch = schedule(recipe, samples, 1)?.n_batches_per_epoch();
        let (total, n_batches) = match training.max_steps {
            Some(steps) => (steps, steps * training.accumulation),
            None => {
                let epochs = training.epochs.unwrap_or(1.0);
                let n_batches = ((batches_per_epoch as f64 * epochs).round() as usize).max(1);
                // The last step takes the micro-batches that are left.
                (n_batches.div_ceil(training.accumulation), n_batches)
            }
        };
        let n_seen = n_batches.min(batches_per_epoch);
        let schedule = schedule(recipe, samples, n_seen)?;
        let mut steps = Self {
            total,
            n_batches,
            batches_per_epoch,
            largest: BatchSize::default(),
            n_inputs: 0,
            n_tokens: 0,
            n_seen,
        };
        for index in 0..n_seen {
            let size = BatchSize::of(&batch(&schedule, index, padding)?);
            steps.n_inputs += size.n_inputs();
            steps.n_tokens += size.n_tokens;
            if size.n_inputs() > steps.largest.n_inputs() {
                steps.largest = size;
            }
        }
        Ok(steps)
    }

    /// Inputs of the whole run, padding included, as far as one epoch tells.
    pub(crate) fn total_inputs(&self) -> f64 {
        self.n_inputs as f64 * self.n_batches as f64 / self.n_seen.max(1) as f64
    }
}

/// One micro-batch of a schedule.
pub(crate) fn batch(
    schedule: &Schedule,
    index: usize,
    padding: Padding,
) -> Result<Batch, TrainError> {
    let item = schedule
        .get(index)
        .map_err(|error| TrainError::burn(&error))?;
    let rows = item.rows;
    Ok(if item.is_packed {
        Batch::packed(&rows, padding)
    } else {
        Batch::from_samples(&rows.concat(), padding)
    })
}

/// The base model on its device.
pub(crate) fn load_base(
    recipe: &Recipe,
    config: &ModelConfig,
    precision: &Precision,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Llama, TrainError> {
    let loading = Instant::now();
    let base = WeightType::from(precision.base);
    let llama = match recipe.model.weights {
        Weights::Checkpoint => load(&recipe.model.path, base, device)?.0,
        Weights::Random | Weights::Timing => {
            let random = config.init(device);
            if base == WeightType::F32 {
                random
            } else {
                random.map(&mut CastTo(base))
            }
        }
    };
    let llama = if precision.compute == precision.base {
        llama
    } else {
        llama.computing_in(precision.compute.into())
    };
    observer.on(&Event::ModelLoaded {
        path: recipe.model.path.clone(),
        n_params: llama.num_params(),
        seconds: loading.elapsed().as_secs_f64(),
    });
    Ok(llama)
}

/// Rounds every weight, one after another.
struct CastTo(WeightType);

impl ModuleMapper for CastTo {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| to_dtype(weight, self.0.into()))
    }
}

/// The model with its adapter, if it has one.
///
/// For a method that needs data, `batches` runs through those of the run.
pub(crate) fn attach_adapter(
    recipe: &Recipe,
    llama: Llama,
    start: Start<'_>,
    observer: &dyn Observer,
) -> Result<Llama, TrainError> {
    let Some(config) = recipe.adapter.config(llama.lm_head.is_some()) else {
        return Ok(llama);
    };
    let mut progress = |done, all| observer.on(&Event::Attaching(done, all));
    Ok(match start {
        _ if config.method != Method::Eva => attach(llama, &config, recipe.seed, &mut progress)?,
        Start::Fresh { schedule, padding } => {
            let directions = directions(recipe, &config, &llama, schedule, padding, observer)?;
            attach_along(llama, &config, &directions)?
        }
        Start::Resumed(ranks) => attach_empty(llama, &config, ranks)?,
        Start::Trial => {
            let like = AdapterConfig {
                method: Method::Lora,
                ..config
            };
            attach(llama, &like, recipe.seed, &mut progress)?
        }
    })
}

/// What a start that needs data has to go by.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The run's batches.
    Fresh {
        schedule: &'a Schedule,
        padding: Padding,
    },
    /// The ranks that an earlier session found; the factors are loaded.
    Resumed(&'a BTreeMap<String, usize>),
    /// Nothing: only time and memory are of interest.
    Trial,
}

/// EVA's pass over data.
fn directions(
    recipe: &Recipe,
    config: &AdapterConfig,
    llama: &Llama,
    schedule: &Schedule,
    padding: Padding,
    observer: &dyn Observer,
) -> Result<Directions, TrainError> {
    /// How many times its rank a layer may get (`rho` of the paper and of PEFT).
    const RHO: f64 = 2.0;
    /// Batches after which what has been found must do. PEFT goes on for ever.
    const MAX_BATCHES: usize = 256;
    let rho = recipe.adapter.rho.unwrap_or(RHO);
    let n_batches = schedule.len();
    let run = |watched: &Llama, index: usize| {
        observer.on(&Event::Looking(index + 1));
        let batch = batch(schedule, index % n_batches.max(1), padding)?;
        let loss = loss_sum(watched, &batch);
        loss.try_into_data()
            .map_err(|error| TrainError::device(&error))?;
        // The positions that a trained token is predicted from; on a GPU there are more, as padding.
        let picked = Some(batch.target_positions.len());
        let mut chosen = batch.target_positions;
        chosen.truncate(batch.n_trained);
        Ok::<_, TrainError>(Rows { chosen, picked })
    };
    let directions = Directions::find(llama.clone(), config, rho, MAX_BATCHES, run)?;
    if !directions.settled() {
        let note = format!(
            "after {MAX_BATCHES} batches the directions of some layers were still moving; \
             they start from what was found"
        );
        observer.on(&Event::Note(note));
    }
    Ok(directions)
}

/// The rank of each adapted layer, for a run that is to be resumed.
pub(crate) fn ranks(llama: &Llama) -> BTreeMap<String, usize> {
    let layers = olora_adapter::factors(llama).into_iter();
    layers
        .map(|layer| (layer.path, layer.a.dims()[1]))
        .collect()
}
