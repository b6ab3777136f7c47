//! A run that starts from an adapter (`adapter.from`): what of its recipe follows
//! from the adapter, and what contradicts it.

use std::{collections::BTreeSet, path::Path};

use burn::tensor::Device;
use olora_adapter::{AdapterConfig, Method, Parameter, PeftAdapter, parameters_to_save, planned};
use olora_files::Fnv1a;
use olora_model::{Llama, ModelConfig, Packing, adapted_vocabulary, weights_fingerprint};

use crate::{
    Event, Observer, Recipe, RunError, TrainedRun,
    recipe::{AdapterSection, Weights},
};

/// The adapter that a recipe starts from, if it names one, and the recipe with
/// all that follows from it filled in.
///
/// # Errors
///
/// What reading it gives; [`RunError::Recipe`] lists the keys that contradict it.
pub(crate) fn filled_in(
    recipe: &Recipe,
    config: &ModelConfig,
    observer: &dyn Observer,
) -> Result<(Recipe, Option<PeftAdapter>), RunError> {
    let Some(path) = &recipe.adapter.from else {
        return Ok((recipe.clone(), None));
    };
    let run = TrainedRun::at(path)?;
    let (mut adapter, asked) = match &run {
        Some(run) => (run.as_trained()?, Some(run.section()?)),
        None => (PeftAdapter::read(path)?, None),
    };
    let note = |text: String| observer.on(&Event::Note(text));
    // Finding layers by name looks at weights, so it is done on a model of the same layers whose
    // weights are as small as can be.
    #[allow(
        clippy::default_trait_access,
        reason = "any device will do: nothing is put on it"
    )]
    let device: Device = Default::default();
    let small = config.miniature().init(&device);
    let renamed = adapter.settle_prefix(&small);
    let said = adapter.warnings.drain(..).chain(adapter.notes.drain(..));
    for text in said.chain(renamed) {
        note(format!("{}: {text}", path.display()));
    }
    let mut merging = Merging {
        section: &recipe.adapter,
        theirs: &adapter.config,
        // What a run with other ranks in each layer, as EVA's, was asked for.
        asked: asked.filter(|asked| !asked.config.method.is_anchored()),
        problems: Vec::new(),
    };
    let mut resolved = recipe.clone();
    resolved.adapter = merging.section(&adapter, &small);
    let mut problems = merging.problems;
    if recipe.adapter.everything {
        problems.push(
            "adapter.method = \"none\" trains every weight, and no adapter: remove it, or adapter.from".to_owned(),
        );
    }
    let starts = [
        ("rho", recipe.adapter.rho.is_some()),
        ("iterations", recipe.adapter.config.iterations.is_some()),
        (
            "gradient_batches",
            recipe.adapter.gradient_batches.is_some(),
        ),
        ("gradient_scale", recipe.adapter.gradient_scale.is_some()),
    ];
    for (key, _) in starts.iter().filter(|(_, is_given)| *is_given) {
        note(format!(
            "adapter.{key} says how an adapter starts, and has no use with adapter.from, which is a start"
        ));
    }
    check_base(&mut resolved, &adapter, &mut problems, observer)?;
    if let Some(rows) = adapted_vocabulary(&adapter, config.vocab_size, config.tie_word_embeddings)?
    {
        problems.push(format!(
            "model.path: the adapter's vocabulary has {rows} rows, and the base's {}: put it on its base first, \
             with `olora merge`, and train on the result",
            config.vocab_size
        ));
    }
    let origin = format!("adapter.from = \"{}\"", path.display());
    if !problems.is_empty() {
        return Err(RunError::Recipe {
            recipe: origin,
            reason: format!(
                "the recipe and the adapter contradict each other:\n  {}\nLeave these keys out to take them from the \
                 adapter",
                problems.join("\n  ")
            ),
        });
    }
    resolved.validate(&origin)?;
    adapter.config = resolved.adapter.config.clone();
    let AdapterConfig {
        method,
        rank,
        dropout,
        ..
    } = &adapter.config;
    let dropped = if *dropout > 0.0 {
        format!(", dropout {dropout}")
    } else {
        String::new()
    };
    note(format!(
        "starts from {}: {} of rank {rank} on {} layers{dropped}, with the optimiser afresh",
        path.display(),
        method.name(),
        adapter.shapes().len()
    ));
    Ok((resolved, Some(adapter)))
}

/// A recipe's `[adapter]` and an adapter, becoming one.
struct Merging<'a> {
    section: &'a AdapterSection,
    theirs: &'a AdapterConfig,
    asked: Option<AdapterSection>,
    problems: Vec<String>,
}

impl Merging<'_> {
    fn section(&mut self, adapter: &PeftAdapter, small: &Llama) -> AdapterSection {
        let (section, theirs) = (self.section, self.theirs);
        let ours = &section.config;
        // Those that start from zero differ in nothing but the start.
        let method = if theirs.method.is_anchored() {
            theirs.method
        } else {
            Method::Lora
        };
        let same = ours.method == method || (!ours.method.is_anchored() && method == Method::Lora);
        if section.given.has("method") && !section.everything && !same {
            self.problems.push(format!(
                "adapter.method is \"{}\" in the recipe, and \"{}\" in the adapter",
                ours.method.name(),
                method.name()
            ));
        }
        let asked = self.asked.as_ref().map(|asked| asked.config.clone());
        self.compare(
            "rank",
            &ours.rank,
            &theirs.rank,
            asked.as_ref().map(|c| &c.rank),
        );
        self.compare(
            "alpha",
            &ours.alpha,
            &theirs.alpha,
            asked.as_ref().map(|c| &c.alpha),
        );
        self.compare("rslora", &ours.rslora, &theirs.rslora, None);
        self.compare("dora", &ours.dora, &theirs.dora, None);
        let (given, had) = (&ours.rank_pattern, &theirs.rank_pattern);
        self.compare(
            "rank_pattern",
            given,
            had,
            asked.as_ref().map(|c| &c.rank_pattern),
        );
        let (given, had) = (&ours.alpha_pattern, &theirs.alpha_pattern);
        self.compare(
            "alpha_pattern",
            given,
            had,
            asked.as_ref().map(|c| &c.alpha_pattern),
        );
        self.compare_saved(adapter, small);
        let names_layers = ["targets", "exclude", "layers"]
            .iter()
            .any(|key| section.given.has(key));
        let mut merged = AdapterSection {
            rho: None,
            gradient_batches: None,
            gradient_scale: None,
            ..section.clone()
        };
        merged.config = AdapterConfig {
            method,
            placement: if section.given.has("placement") {
                ours.placement
            } else {
                theirs.placement
            },
            dropout: if section.given.has("dropout") {
                ours.dropout
            } else {
                theirs.dropout
            },
            targets: ours.targets.clone(),
            exclude: ours.exclude.clone(),
            layers: ours.layers.clone(),
            ..theirs.clone()
        };
        if names_layers {
            self.compare_layers(adapter, small);
        } else {
            merged.config.targets = adapter.layer_names(small);
            merged.config.layers = None;
            merged.exclude = None;
        }
        merged
    }

    /// A key that was given must be the adapter's, or what its run was asked for.
    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        key: &str,
        ours: &T,
        theirs: &T,
        asked: Option<&T>,
    ) {
        if self.section.given.has(key) && ours != theirs && Some(ours) != asked {
            self.problems.push(format!(
                "adapter.{key} is {ours:?} in the recipe, and {theirs:?} in the adapter"
            ));
        }
    }

    /// The layers that the recipe names must be those that the adapter has.
    fn compare_layers(&mut self, adapter: &PeftAdapter, small: &Llama) {
        let section = AdapterSection {
            config: AdapterConfig {
                method: Method::Lora,
                targets: self.section.config.targets.clone(),
                layers: self.section.config.layers.clone(),
                ..AdapterConfig::default()
            },
            exclude: self.section.exclude.clone(),
            ..AdapterSection::default()
        };
        let crate::recipe::Trained::Adapter(config) = section.trained(small.lm_head.is_some())
        else {
            return;
        };
        let ours: BTreeSet<String> = match planned(small, &config) {
            Ok(planned) => planned.into_iter().map(|(target, _)| target.path).collect(),
            Err(error) => {
                self.problems.push(format!("adapter.targets: {error}"));
                return;
            }
        };
        let theirs: BTreeSet<String> = adapter
            .shapes()
            .into_iter()
            .map(|(path, ..)| path)
            .collect();
        let only = |these: &BTreeSet<String>, others: &BTreeSet<String>, whose: &str| {
            let mut missing = these.difference(others);
            let first = missing.next()?;
            Some(match missing.count() {
                0 => format!("only the {whose} has `{first}`"),
                more => format!("only the {whose} has `{first}` and {more} more"),
            })
        };
        let differences = [
            only(&ours, &theirs, "recipe"),
            only(&theirs, &ours, "adapter"),
        ];
        let differences: Vec<_> = differences.into_iter().flatten().collect();
        if !differences.is_empty() {
            self.problems.push(format!(
                "adapter.targets (with exclude and layers) names {} layers in the recipe, and the adapter has {}: {}",
                ours.len(),
                theirs.len(),
                differences.join("; ")
            ));
        }
    }

    /// The modules that train whole must be the same.
    fn compare_saved(&mut self, adapter: &PeftAdapter, small: &Llama) {
        if !self.section.given.has("modules_to_save") {
            return;
        }
        let names = &self.section.config.modules_to_save;
        let ours: BTreeSet<String> = parameters_to_save(small, names)
            .iter()
            .map(Parameter::path)
            .map(str::to_owned)
            .collect();
        let trained = adapter.saved().filter(|(.., trained)| *trained);
        let theirs: BTreeSet<String> = trained.map(|(path, ..)| path.to_owned()).collect();
        if ours != theirs {
            self.problems.push(format!(
                "adapter.modules_to_save is {names:?} in the recipe, which is {ours:?}, and the adapter has {theirs:?}"
            ));
        }
    }
}

/// The base that the adapter was trained on, as far as anything tells.
fn check_base(
    recipe: &mut Recipe,
    adapter: &PeftAdapter,
    problems: &mut Vec<String>,
    observer: &dyn Observer,
) -> Result<(), RunError> {
    let path = recipe.model.path.display().to_string();
    let recorded = adapter.base.as_deref().unwrap_or("unknown");
    match &adapter.base_fingerprint {
        Some(expected) if recipe.model.weights == Weights::Checkpoint => {
            if weights_fingerprint(&recipe.model.path)? != *expected {
                problems.push(format!(
                    "model.path is {path}, whose weights are not those that the adapter was trained on, `{recorded}`"
                ));
            }
        }
        _ => {
            let name = recipe.model.base_name.as_deref().unwrap_or(&path);
            if adapter.base.is_some() && last_name(name) != last_name(recorded) {
                observer.on(&Event::Note(format!(
                    "the adapter says that it is for `{recorded}`, and it is put on {name}: if these are not the same \
                     weights, it starts from noise"
                )));
            }
        }
    }
    let Some(packing) = &adapter.base_packing else {
        return Ok(());
    };
    let theirs: Result<Packing, _> = packing.parse();
    match theirs {
        Ok(theirs) if recipe.model.quantize.is_stored() => {
            observer.on(&Event::Note(format!(
                "the adapter was trained on a base packed as {packing}, and the base is packed so here too"
            )));
            recipe.model.quantize = theirs;
        }
        Ok(theirs) if theirs == recipe.model.quantize => {}
        _ => problems.push(format!(
            "model.quantize is \"{}\" in the recipe, and the adapter was trained on a base packed as {packing}",
            recipe.model.quantize.name()
        )),
    }
    Ok(())
}

/// `owner/Name` and `/models/name/` are called alike.
fn last_name(name: &str) -> String {
    let name = name.trim_end_matches('/');
    name.rsplit('/').next().unwrap_or(name).to_lowercase()
}

/// The model with the adapter that its run starts from.
pub(crate) fn attach_from(
    llama: Llama,
    adapter: &PeftAdapter,
    observer: &dyn Observer,
) -> Result<Llama, RunError> {
    // What is saved is what trains: weights of the base that came along and are not the base's
    // would be lost.
    let along = adapter.saved().filter(|(.., trained)| !trained);
    for (path, ..) in along {
        // The other end of a tied embedding that trains.
        if adapter.ties_weights && path.ends_with("lm_head.weight") {
            continue;
        }
        let name = path.strip_suffix(".weight").unwrap_or(path);
        if !adapter.saves_the_layer(path, &llama, name)? {
            return Err(RunError::mismatch(format!(
                "adapter.from: the adapter holds `{path}`, which is a weight of the base that it neither trained nor \
                 left as it is: put it on its base first, with `olora merge`, and train on the result"
            )));
        }
    }
    let (llama, notes) = llama.adapted(adapter.clone())?;
    for note in notes {
        observer.on(&Event::Note(note));
    }
    Ok(llama)
}

/// What names the samples and the base, with the adapter that the run starts
/// from.
pub(crate) fn fingerprint_with(fingerprint: u64, from: Option<&PeftAdapter>) -> u64 {
    let Some(from) = from else {
        return fingerprint;
    };
    let mut hash = Fnv1a::default();
    hash.add(&fingerprint.to_le_bytes());
    hash.add(&from.content().to_le_bytes());
    hash.value()
}

/// How errors call what a run was started on.
pub(crate) fn started_on(recipe: &Recipe) -> String {
    let from = recipe.adapter.from.as_deref().map(Path::display);
    let from = from.map(|from| format!(" or the adapter in {from}"));
    format!(
        "{} or the weights in {}{}",
        recipe.data.described(),
        recipe.model.path.display(),
        from.unwrap_or_default()
    )
}
