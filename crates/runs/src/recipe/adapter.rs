//! `[adapter]`: an [`AdapterConfig`], and the few keys that only a recipe has.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use olora_adapter::{ALL_LINEAR, AdapterConfig, PeftForm};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
    ser::Error as _,
};
use serde_json::{Value, json};

/// What of a model trains.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// An adapter; the base is frozen.
    Adapter(AdapterConfig),
    /// Every weight.
    Everything,
}

/// `[adapter]`. Its keys are those of [`AdapterConfig`], each by its own name,
/// and those below.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterSection {
    /// `method = "none"`: every weight trains, and there is no adapter.
    pub everything: bool,
    /// The adapter, but for [`exclude`](Self::exclude).
    pub config: AdapterConfig,
    /// Layers to leave out. If not given, `all-linear` leaves out `lm_head`,
    /// as in PEFT, and names leave out nothing.
    pub exclude: Option<Vec<String>>,
    /// For `eva`: a layer gets at most this many times the rank; 2 if not given.
    pub rho: Option<f64>,
    /// For `olora-gradient` and `lora-gradient`: the micro-batches whose gradient
    /// the start is along, from the run's first; if not given, those of the
    /// first step, 8 at most.
    pub gradient_batches: Option<usize>,
    /// For the same: the length of each column of `A` and each row of `B`; 1 if
    /// not given.
    pub gradient_scale: Option<f64>,
    /// `plain`, or `native` for PEFT's own form of the method.
    pub form: PeftForm,
    /// The adapter to start from: a directory of PEFT's or mlx-lm's, a run, or a
    /// checkpoint of one. The other keys then follow from it.
    pub from: Option<PathBuf>,
    /// Which keys were written, of those that may follow from an adapter.
    pub given: Given,
}

/// The keys that a recipe's section was written with. It is no part of what the
/// recipe says: any two are equal.
#[derive(Clone, Debug, Default)]
pub struct Given(BTreeSet<String>);

impl Given {
    /// Whether a key was written.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

impl PartialEq for Given {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// `method` for no adapter.
const NONE: &str = "none";

impl AdapterSection {
    /// Every weight trains.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// The method's name in a recipe.
    pub fn method_name(&self) -> &'static str {
        if self.everything {
            NONE
        } else {
            self.config.method.name()
        }
    }

    /// What of a model trains, which has an `lm_head` of its own or not.
    pub fn trained(&self, has_lm_head: bool) -> Trained {
        if self.everything {
            return Trained::Everything;
        }
        let targets = |name: &str| self.config.targets.iter().any(|target| target == name);
        let by_default = if targets(ALL_LINEAR) && !targets("lm_head") && has_lm_head {
            vec!["lm_head".to_owned()]
        } else {
            Vec::new()
        };
        Trained::Adapter(AdapterConfig {
            exclude: self.exclude.clone().unwrap_or(by_default),
            ..self.config.clone()
        })
    }
}

impl Serialize for AdapterSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let config = serde_json::to_value(&self.config).map_err(S::Error::custom)?;
        let Value::Object(mut keys) = config else {
            return Err(S::Error::custom("an adapter's configuration is no table"));
        };
        keys.insert("method".to_owned(), json!(self.method_name()));
        keys.remove("exclude");
        if let Some(exclude) = &self.exclude {
            keys.insert("exclude".to_owned(), json!(exclude));
        }
        if let Some(rho) = self.rho {
            keys.insert("rho".to_owned(), json!(rho));
        }
        if let Some(batches) = self.gradient_batches {
            keys.insert("gradient_batches".to_owned(), json!(batches));
        }
        if let Some(scale) = self.gradient_scale {
            keys.insert("gradient_scale".to_owned(), json!(scale));
        }
        keys.insert("form".to_owned(), json!(self.form));
        if let Some(from) = &self.from {
            keys.insert("from".to_owned(), json!(from));
        }
        keys.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AdapterSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Section;
        impl<'de> Visitor<'de> for Section {
            type Value = AdapterSection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the table `[adapter]`")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AdapterSection, A::Error> {
                let mut section = AdapterSection::default();
                let mut ours = Ours {
                    map,
                    section: &mut section,
                    is_method: false,
                };
                let config = AdapterConfig::deserialize(MapAccessDeserializer::new(&mut ours))?;
                section.config = config;
                Ok(section)
            }
        }
        deserializer.deserialize_map(Section)
    }
}

/// Takes what is the section's own out of a table, and hands on the rest, so
/// that the configuration reads its keys itself and errors keep their lines.
struct Ours<'a, A> {
    map: A,
    section: &'a mut AdapterSection,
    /// Whether the value to come is that of `method`.
    is_method: bool,
}

/// The keys of a recipe's section that are none of the configuration.
#[derive(Clone, Copy)]
enum Own {
    Exclude,
    Rho,
    GradientBatches,
    GradientScale,
    Form,
    From,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for &mut Ours<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let mut seed = Some(seed);
        loop {
            let mut own = None;
            let mut is_method = false;
            let this = &mut **self;
            let key = Key {
                seed: &mut seed,
                own: &mut own,
                is_method: &mut is_method,
                given: &mut this.section.given,
            };
            let Some(key) = this.map.next_key_seed(key)? else {
                return Ok(None);
            };
            match own {
                None => {
                    self.is_method = is_method;
                    return Ok(key);
                }
                Some(Own::Exclude) => self.section.exclude = Some(self.map.next_value()?),
                Some(Own::Rho) => self.section.rho = Some(self.map.next_value()?),
                Some(Own::GradientBatches) => {
                    self.section.gradient_batches = Some(self.map.next_value()?);
                }
                Some(Own::GradientScale) => {
                    self.section.gradient_scale = Some(self.map.next_value()?);
                }
                Some(Own::Form) => self.section.form = self.map.next_value()?,
                Some(Own::From) => self.section.from = Some(self.map.next_value()?),
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        if !self.is_method {
            return self.map.next_value_seed(seed);
        }
        let everything = &mut self.section.everything;
        self.map.next_value_seed(MethodValue { seed, everything })
    }
}

/// A key: the section's own, or one for the configuration.
struct Key<'a, K> {
    seed: &'a mut Option<K>,
    own: &'a mut Option<Own>,
    is_method: &'a mut bool,
    given: &'a mut Given,
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<'_, K> {
    type Value = Option<K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        *self.own = match key.as_str() {
            "exclude" => Some(Own::Exclude),
            "rho" => Some(Own::Rho),
            "gradient_batches" => Some(Own::GradientBatches),
            "gradient_scale" => Some(Own::GradientScale),
            "form" => Some(Own::Form),
            "from" => Some(Own::From),
            _ => None,
        };
        self.given.0.insert(key.clone());
        if self.own.is_some() {
            return Ok(None);
        }
        *self.is_method = key == "method";
        let seed = self.seed.take();
        let key: StrDeserializer<'_, D::Error> = key.as_str().into_deserializer();
        let unknown = |error: D::Error| {
            let error = error.to_string();
            D::Error::custom(format!(
                "{}, `rho`, `gradient_batches`, `gradient_scale`, `form`, `from`",
                error.trim_end()
            ))
        };
        let key = seed.map(|seed| seed.deserialize(key));
        key.transpose().map_err(unknown)
    }
}

/// The value of `method`: `none`, or one for the configuration.
struct MethodValue<'a, V> {
    seed: V,
    everything: &'a mut bool,
}

impl<'de, V: DeserializeSeed<'de>> DeserializeSeed<'de> for MethodValue<'_, V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let name = String::deserialize(deserializer)?;
        *self.everything = name == NONE;
        // The configuration of an adapter that is not there is the usual one.
        let name = if *self.everything {
            AdapterConfig::default().method.name()
        } else {
            name.as_str()
        };
        let known = olora_adapter::Method::ALL.map(olora_adapter::Method::name);
        if !known.contains(&name) {
            return Err(D::Error::custom(format!(
                "unknown variant `{name}`, expected one of {}, `{NONE}`",
                known.map(|name| format!("`{name}`")).join(", ")
            )));
        }
        let name: StrDeserializer<'_, D::Error> = name.into_deserializer();
        self.seed.deserialize(name)
    }
}
