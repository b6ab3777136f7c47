//! Adapters as Hugging Face PEFT stores them: `adapter_config.json` and
//! `adapter_model.safetensors` in one directory.
//!
//! PEFT holds `lora_A` as `[rank, d_in]` and `lora_B` as `[d_out, rank]`, the
//! transposes of ours, under `base_model.model.<layer>.lora_A.weight`.

mod config;
mod file;
mod matching;
mod mlx;
mod names;
mod read;
mod restore;
mod task;
mod tensors;
mod token_rows;
mod trained;
mod write;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use matching::Rules;
pub use mlx::MLX_TENSOR_FILE;
use serde::{Deserialize, Serialize};
pub use task::TaskType;
pub use trained::NamedTensor;
pub use write::WriteOptions;

use crate::{
    AdapterConfig, AdapterError, Method,
    factors::{LayerFactors, factors},
    params::params,
    planned::Shapes,
    saved::{self, Stored},
    target::{Kind, is_or_ends_with},
};

/// The name of the configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the tensor file.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before every module's path.
const PREFIX: &str = "base_model.model.";

/// In which of PEFT's forms an adapter is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeftForm {
    /// Plain LoRA on the original base, scaled by alpha / rank, which every tool
    /// loads. An anchor doubles the rank: `A' = [A, A₀]`, `B' = [B; −B₀]`.
    #[default]
    Plain,
    /// PEFT's own: the factors as they are, and `init_lora_weights` says what
    /// they are measured from (`"olora"`, `"pissa"`). PEFT makes that start again
    /// from the base when it loads them; few other tools do.
    Native,
}

/// An adapter on the host: what a PEFT directory holds, before it meets a model.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// Rank, alpha, dropout, targets and kind; `method` tells what the factors
    /// are measured from.
    pub config: AdapterConfig,
    /// `base_model_name_or_path`, if recorded.
    pub base: Option<String>,
    /// `task_type`: what PEFT wraps the module as; `None` for a module that is
    /// nothing PEFT knows.
    pub task: Option<TaskType>,
    /// What a reader should know: things that are allowed and seldom meant.
    pub notes: Vec<String>,
    /// What may make the result another than the adapter's: keys that are set and
    /// that this version does not know.
    pub warnings: Vec<String>,
    /// What identified the base's weights when the adapter was written.
    pub base_fingerprint: Option<String>,
    /// What the base's matrices were packed in for training, if not what its
    /// files have: on others, the update is measured from another base.
    pub base_packing: Option<String>,
    /// Whether what is trained of a tied embedding is meant for both of its ends
    /// (PEFT's `ensure_weight_tying`).
    pub ties_weights: bool,
    /// The file read, for errors.
    pub(crate) file: PathBuf,
    /// By layer path.
    pub(crate) layers: BTreeMap<String, Layer>,
    /// Parameters of modules that are saved whole, and others of the base that
    /// came along, by path; the flag tells whether they train.
    pub(crate) saved: BTreeMap<String, (Stored, bool)>,
    /// Which layers the configuration names, by PEFT's rules; `None` if it
    /// leaves that to a table of PEFT's, or if this was not read from a file.
    pub(crate) rules: Option<Rules>,
    /// Everything in the file that is wrong before any model is known.
    pub(crate) problems: Vec<String>,
    /// Whether a `module.` was taken from the beginning of all paths.
    pub(crate) inner: bool,
    /// Where the layers' names were a text model's within a larger one.
    pub(crate) within: Option<Within>,
}

/// How transformers names the text model of one that reads pictures too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Within {
    /// `language_model.model.layers`, before version 5.
    Older,
    /// `model.language_model.layers`.
    Newer,
}

/// One adapted layer, in PyTorch's orientation.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) kind: Kind,
    /// As configured; that of the factors, unless they do not fit.
    pub(crate) rank: usize,
    /// `[rank, d_in]`.
    pub(crate) a: Stored,
    /// `[d_out, rank]`.
    pub(crate) b: Stored,
    /// `[d_out]`.
    pub(crate) magnitude: Option<Stored>,
    pub(crate) scale: f64,
    /// `A₀` and `B₀`, shaped as the factors, where a run has kept what it started
    /// from. No file of PEFT's holds them.
    pub(crate) anchor: Option<[Stored; 2]>,
}

/// A layer of plain LoRA, as other formats want it.
#[derive(Clone, Copy, Debug)]
pub struct PlainLayer<'a> {
    /// The layer's path, without `.weight`.
    pub path: &'a str,
    /// Rank, input and output features.
    pub dims: [usize; 3],
    /// `[rank, d_in]`, row-major.
    pub a: &'a [f32],
    /// `[d_out, rank]`, row-major.
    pub b: &'a [f32],
    /// What their product is scaled by.
    pub scale: f64,
}

/// Writes the adapter on `module` to `directory`, in f32.
///
/// `task` is what PEFT is to wrap the module as: for a language model
/// [`TaskType::CausalLm`], and `None` for a module of your own, which PEFT would
/// not load as a language model. `base` is recorded as
/// `base_model_name_or_path`. Each file is written under a temporary name and
/// renamed, the configuration last.
///
/// # Errors
///
/// As [`PeftAdapter::of`], or an [`AdapterError::Io`] that names the file.
pub fn save_peft<M: Module>(
    module: &M,
    config: &AdapterConfig,
    form: PeftForm,
    task: Option<TaskType>,
    base: &str,
    directory: &Path,
) -> Result<(), AdapterError> {
    let mut adapter = PeftAdapter::of(module, config, form)?;
    adapter.task = task;
    adapter.base = Some(base.to_owned());
    adapter.write(directory, &WriteOptions::default())
}

impl PeftAdapter {
    /// The adapter on `module`, which was attached with `config`, in one of
    /// PEFT's forms. Its base and its task are the caller's to fill in.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NotAdapted`]; [`AdapterError::NotFinite`]; and
    /// [`AdapterError::Impossible`] if PEFT has no form of its own for the
    /// method.
    pub fn of<M: Module>(
        module: &M,
        config: &AdapterConfig,
        form: PeftForm,
    ) -> Result<Self, AdapterError> {
        let all = factors(module);
        if all.is_empty() {
            return Err(AdapterError::NotAdapted);
        }
        form.check(config)?;
        let anchored = all.iter().any(|layer| layer.anchor.is_some());
        let widens = anchored && form == PeftForm::Plain;
        let shapes = Shapes::new(config)?;
        let mut layers = BTreeMap::new();
        for factors in all {
            let rank = factors.a.dims()[1];
            let scale = shapes.scale(&factors.path, factors.kind, rank)?;
            let path = factors.path.clone();
            layers.insert(path, layer(factors, scale, widens)?);
        }
        let saved = saved::values(module, &config.modules_to_save)?;
        // PEFT compares ends of names, of which a whole path has one.
        let mut names: Vec<String> = saved
            .keys()
            .map(|path| {
                path.rsplit_once('.')
                    .map_or(path.as_str(), |(module, _)| module)
            })
            .map(str::to_owned)
            .collect();
        names.dedup();
        let targets = write::target_names(&layers, module);
        let saved = saved.into_iter();
        let saved = saved.map(|(path, value)| (path, (value, true))).collect();
        let mut adapter = Self::assembled(config, targets, layers, saved);
        adapter.config.modules_to_save = names;
        form.settle(&mut adapter.config);
        adapter.settle_patterns();
        Ok(adapter)
    }

    /// Of these layers, which nothing has been read from a file of.
    fn assembled(
        config: &AdapterConfig,
        targets: Vec<String>,
        layers: BTreeMap<String, Layer>,
        saved: BTreeMap<String, (Stored, bool)>,
    ) -> Self {
        Self {
            config: AdapterConfig {
                targets,
                exclude: Vec::new(),
                layers: None,
                ..config.clone()
            },
            base: None,
            task: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            ties_weights: false,
            inner: false,
            within: None,
            base_fingerprint: None,
            base_packing: None,
            file: PathBuf::new(),
            layers,
            saved,
            rules: None,
            problems: Vec::new(),
        }
    }

    /// With the file that it was read from, for errors.
    #[must_use]
    pub fn read_from(mut self, file: &Path) -> Self {
        file.clone_into(&mut self.file);
        self
    }

    /// The number of values in all factors, magnitudes and saved modules.
    pub fn num_params(&self) -> usize {
        let layers = self.layers.values().map(|layer| {
            let magnitude = layer.magnitude.as_ref().map_or(0, |m| m.values.len());
            layer.a.values.len() + layer.b.values.len() + magnitude
        });
        let saved = self.saved.values().filter(|(_, trained)| *trained);
        layers.sum::<usize>() + saved.map(|(value, _)| value.values.len()).sum::<usize>()
    }

    /// The adapted layers with `lora_A`'s and `lora_B`'s shapes.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>, Vec<usize>)> {
        let all = self.layers.iter();
        all.map(|(path, layer)| (path.clone(), layer.a.shape.clone(), layer.b.shape.clone()))
            .collect()
    }

    /// The shortest list of names that mean exactly its layers, of all that
    /// `module` has.
    pub fn layer_names<M: Module>(&self, module: &M) -> Vec<String> {
        write::target_names(&self.layers, module)
    }

    /// Whether every `lora_B` is zero, and nothing else has been trained: the
    /// adapter then changes nothing.
    pub fn is_idle(&self) -> bool {
        let zero = |layer: &Layer| {
            let idle = if layer.kind == Kind::Embedding {
                &layer.a
            } else {
                &layer.b
            };
            idle.values.iter().all(|value| *value == 0.0)
        };
        !self.config.method.is_anchored()
            && self.saved.is_empty()
            && self.layers.values().all(zero)
            && !self.config.dora
    }

    /// The layers as plain LoRA.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] names what plain LoRA on linear layers cannot
    /// express: a start that is not in the factors, magnitudes, modules that are
    /// saved whole, embeddings.
    pub fn plain_layers(&self, purpose: &str) -> Result<Vec<PlainLayer<'_>>, AdapterError> {
        let refuse = |path: &str, reason: &str| {
            Err(AdapterError::Impossible {
                path: path.to_owned(),
                what: purpose.to_owned(),
                reason: reason.to_owned(),
            })
        };
        if self.config.method.is_anchored() {
            let reason = "it is measured from a start that is made from the base: \
                          convert it to plain LoRA first, with its base at hand";
            return refuse("the adapter", reason);
        }
        self.ensure_sound()?;
        // An adapted layer's own weight came along, and is the base's.
        let mut whole = self.saved.keys().filter(|path| !self.is_base_weight(path));
        if let Some(path) = whole.next() {
            return refuse(
                path,
                "it is saved whole beside the factors, which this cannot carry",
            );
        }
        let mut plain = Vec::with_capacity(self.layers.len());
        for (path, layer) in &self.layers {
            if layer.magnitude.is_some() {
                return refuse(
                    path,
                    "DoRA's magnitudes are no low-rank update: merge it instead",
                );
            }
            if layer.kind == Kind::Embedding {
                return refuse(path, "it is an embedding");
            }
            plain.push(PlainLayer {
                path,
                dims: [layer.rank, layer.a.shape[1], layer.b.shape[0]],
                a: &layer.a.values,
                b: &layer.b.values,
                scale: layer.scale,
            });
        }
        Ok(plain)
    }

    /// Whether a parameter beside the factors is the weight of an adapted layer.
    pub(crate) fn is_base_weight(&self, path: &str) -> bool {
        let layer = path.rsplit_once('.').map_or(path, |(layer, _)| layer);
        self.layers.contains_key(layer)
    }

    /// What is saved whole, by path: shape in PyTorch's orientation, and whether
    /// it trained or came along with the adapter.
    pub fn saved(&self) -> impl Iterator<Item = (&str, &[usize], bool)> {
        let saved = self.saved.iter();
        saved.map(|(path, (value, trained))| (path.as_str(), value.shape.as_slice(), *trained))
    }

    /// Whether an embedding of tokens trains whole.
    pub fn trains_embedding(&self) -> bool {
        self.saved()
            .any(|(path, _, trained)| trained && path.ends_with(write::EMBEDDING))
    }

    /// Whether two of the parameters that are saved whole have the same values.
    pub fn saved_alike(&self, one: &str, other: &str) -> bool {
        match (self.saved.get(one), self.saved.get(other)) {
            (Some((one, _)), Some((other, _))) => one == other,
            _ => false,
        }
    }

    /// Whether a parameter that is saved whole is what a module has as the weight
    /// of an embedding of this name, in the number format that it has it in.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Device`] and [`AdapterError::NotFinite`] from reading it.
    pub fn saves_the_layer<M: Module>(
        &self,
        path: &str,
        module: &M,
        name: &str,
    ) -> Result<bool, AdapterError> {
        let mut all = params(module).into_iter();
        let layer = all
            .find(|param| param.place().name() == "weight" && is_or_ends_with(param.layer(), name));
        let (Some(layer), Some((saved, _))) = (layer, self.saved.get(path)) else {
            return Ok(false);
        };
        let (Some(weight), Ok(shape)) = (
            layer.tensor::<2>(),
            <[usize; 2]>::try_from(saved.shape.clone()),
        ) else {
            return Ok(false);
        };
        if weight.dims() != shape {
            return Ok(false);
        }
        let on = (&weight.device(), weight.dtype());
        let data = TensorData::new(saved.values.clone(), shape);
        let rounded = Stored::of(Tensor::<2>::from_data(data, on), false, path)?;
        Ok(rounded == Stored::of(weight, false, layer.path())?)
    }

    /// Leaves out a parameter that is saved whole, and the names in
    /// `modules_to_save` that it is under.
    pub fn forget(&mut self, path: &str) {
        self.saved.remove(path);
        let names = &mut self.config.modules_to_save;
        names.retain(|name| !saved::is_saved_with(path, name));
    }

    /// The path of the adapted layer of this name, if there is one.
    pub fn adapts(&self, name: &str) -> Option<&str> {
        let mut paths = self.layers.keys();
        paths
            .find(|path| is_or_ends_with(path, name))
            .map(String::as_str)
    }

    /// The directory that it was read from.
    pub fn directory(&self) -> Option<&Path> {
        self.file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
    }

    /// Refuses a file that does not fit itself.
    pub(crate) fn ensure_sound(&self) -> Result<(), AdapterError> {
        let mut problems = self.problems.clone();
        for (path, layer) in &self.layers {
            for (name, factor, axis) in [("lora_A", &layer.a, 0), ("lora_B", &layer.b, 1)] {
                if factor.shape.len() != 2 || factor.shape[axis] != layer.rank {
                    problems.push(format!(
                        "misshapen: `{PREFIX}{path}.{name}` is {:?}, but its rank is {}",
                        factor.shape, layer.rank
                    ));
                }
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(AdapterError::Unsound {
            file: self.file.clone(),
            problems,
        })
    }

    /// Writes what the layers' ranks and scales are into the configuration:
    /// most in `rank` and `alpha`, the others in the patterns.
    pub(crate) fn settle_patterns(&mut self) {
        let by = |rank: usize| {
            if self.config.rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            }
        };
        let alpha_of = |layer: &Layer| layer.scale * by(layer.rank);
        let rank = most_common(self.layers.values().map(|layer| layer.rank));
        let alpha = most_common(self.layers.values().map(|layer| alpha_of(layer).to_bits()));
        let (Some(rank), Some(alpha)) = (rank, alpha.map(f64::from_bits)) else {
            return;
        };
        let ranks = self.layers.iter().map(|(path, layer)| (path, layer.rank));
        let rank_pattern = write::pattern(&ranks, |value| *value != rank);
        let alphas = self
            .layers
            .iter()
            .map(|(path, layer)| (path, alpha_of(layer)));
        let alpha_pattern = write::pattern(&alphas, |value| *value != alpha);
        (self.config.rank, self.config.alpha) = (rank, alpha);
        (self.config.rank_pattern, self.config.alpha_pattern) = (rank_pattern, alpha_pattern);
    }
}

/// The value that occurs most often; of those, the smallest.
fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0_usize) += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|(_, n)| *n == most)
        .map(|(value, _)| value)
}

/// One layer in PyTorch's orientation; widened, with its start as further ranks.
fn layer(factors: LayerFactors, scale: f64, widens: bool) -> Result<Layer, AdapterError> {
    let LayerFactors {
        path,
        mut a,
        mut b,
        anchor,
        magnitude,
        kind,
    } = factors;
    if let (true, Some((a0, b0))) = (widens, anchor) {
        a = Tensor::cat(vec![a, a0], 1);
        b = Tensor::cat(vec![b, b0.neg()], 0);
    }
    let magnitude = magnitude
        .map(|(now, _)| Stored::of(now, false, &path))
        .transpose()?;
    Ok(Layer {
        kind,
        rank: a.dims()[1],
        a: Stored::of(a, true, &path)?,
        b: Stored::of(b, true, &path)?,
        magnitude,
        scale,
        anchor: None,
    })
}

impl PeftForm {
    /// What the configuration is once an adapter is in this form.
    fn settle(self, config: &mut AdapterConfig) {
        if self == Self::Plain {
            config.method = Method::Lora;
            config.iterations = None;
            config.placement = crate::Placement::default();
            config.rslora = false;
        }
    }

    /// Refuses PEFT's own form of a method that PEFT does not have, or could not
    /// load again.
    pub fn check(self, config: &AdapterConfig) -> Result<(), AdapterError> {
        let reason = match config.method {
            _ if self == Self::Plain => return Ok(()),
            Method::OloraTail | Method::Milora | Method::OloraGradient => {
                "PEFT does not have this method"
            }
            Method::Pissa if config.iterations.is_some() => {
                "PEFT draws another random start when it loads a `pissa_niter` adapter"
            }
            _ => return Ok(()),
        };
        Err(AdapterError::Impossible {
            path: format!("method = \"{}\"", config.method.name()),
            what: "`form = \"native\"`".to_owned(),
            reason: format!("{reason}; use `form = \"plain\"`, which is exact"),
        })
    }
}
