//! What is compared with what.

use std::{fmt, str::FromStr};

use olora_adapter::Method;
use olora_runs::Recipe;

use crate::ComparisonError;

/// The ratio that `loraplus` stands for, as its authors advise (Hayou et al.
/// 2024, arXiv 2402.12354).
const LORAPLUS_RATIO: f64 = 16.0;

/// A method with its modifiers, such as `olora`, `rslora` or `olora+dora`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    method: Method,
    rslora: bool,
    dora: bool,
    loraplus: bool,
    /// `adapter.gradient_scale`, of methods that have one.
    scale: Option<f64>,
}

impl Variant {
    /// Plain LoRA, which others are measured against.
    pub const LORA: Self = Self {
        method: Method::Lora,
        rslora: false,
        dora: false,
        loraplus: false,
        scale: None,
    };

    /// Where it stands in a table.
    pub(crate) fn order(self) -> (usize, [bool; 3], Option<u64>) {
        let position = Method::ALL.iter().position(|method| *method == self.method);
        let modifiers = [self.loraplus, self.dora, self.rslora];
        // Positive numbers are in the order of their bits.
        let scale = self.scale.map(f64::to_bits);
        (position.unwrap_or(Method::ALL.len()), modifiers, scale)
    }

    /// What it comes to on a recipe.
    pub(crate) fn as_of(self, recipe: &Recipe) -> Recipe {
        let mut recipe = self.applied_to(recipe);
        recipe.adapter.gradient_scale.get_or_insert(1.0);
        recipe
    }

    /// The recipe with this in the place of its own method. Keys that only
    /// another method has are left out; rank and alpha stay.
    pub(crate) fn applied_to(self, recipe: &Recipe) -> Recipe {
        let mut recipe = recipe.clone();
        let adapter = &mut recipe.adapter;
        adapter.everything = false;
        adapter.rho = adapter.rho.filter(|_| self.method == Method::Eva);
        let of_gradient = self.method.is_of_gradient();
        adapter.gradient_batches = adapter.gradient_batches.filter(|_| of_gradient);
        adapter.gradient_scale = self
            .scale
            .or(adapter.gradient_scale.filter(|_| of_gradient));
        let config = &mut adapter.config;
        config.method = self.method;
        (config.rslora, config.dora) = (self.rslora, self.dora);
        config.iterations = config.iterations.filter(|_| self.method == Method::Pissa);
        recipe.training.loraplus_ratio = self.loraplus.then_some(LORAPLUS_RATIO);
        recipe
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modifiers = [
            (self.rslora, "rslora"),
            (self.dora, "dora"),
            (self.loraplus, "loraplus"),
        ];
        let given = modifiers.iter().filter(|(given, _)| *given);
        let mut names: Vec<&str> = given.map(|(_, name)| *name).collect();
        // A modified LoRA goes by the modifier's name.
        if names.is_empty() || self.method != Method::Lora {
            names.insert(0, self.method.name());
        }
        f.write_str(&names.join("+"))?;
        match self.scale {
            Some(scale) => write!(f, "+c{scale}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Variant {
    type Err = ComparisonError;

    fn from_str(text: &str) -> Result<Self, ComparisonError> {
        let refuse = |reason: String| {
            let names: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
            ComparisonError::Methods {
                given: format!("--methods {text}"),
                reason: format!(
                    "{reason}. Expected one of {}, with +rslora, +dora or +loraplus behind it where \
                     wanted, and +c0.5 or the like behind those along the gradient, for another \
                     `gradient_scale`; `rslora`, `dora` and `loraplus` alone stand for LoRA with them",
                    names.join(", ")
                ),
            }
        };
        let mut variant = Self::LORA;
        for (index, part) in text.split('+').enumerate() {
            let modifier = match part {
                "rslora" => &mut variant.rslora,
                "dora" => &mut variant.dora,
                "loraplus" => &mut variant.loraplus,
                name if index == 0 => {
                    variant.method = *Method::ALL
                        .iter()
                        .find(|method| method.name() == name)
                        .ok_or_else(|| refuse(format!("there is no method `{name}`")))?;
                    continue;
                }
                name => {
                    let scale = name.strip_prefix('c').and_then(|scale| scale.parse().ok());
                    let Some(scale) = scale.filter(|scale: &f64| *scale > 0.0) else {
                        return Err(refuse(format!("there is no modifier `{name}`")));
                    };
                    if !variant.method.is_of_gradient() {
                        return Err(refuse(format!(
                            "`{name}` is for methods along the gradient"
                        )));
                    }
                    if variant.scale.replace(scale).is_some() {
                        return Err(refuse("a scale is there twice".to_owned()));
                    }
                    continue;
                }
            };
            if std::mem::replace(modifier, true) {
                return Err(refuse(format!("`{part}` is there twice")));
            }
        }
        Ok(variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (text, name) in [
            ("lora", "lora"),
            ("rslora", "rslora"),
            ("lora+rslora", "rslora"),
            ("olora", "olora"),
            ("olora+dora+rslora", "olora+rslora+dora"),
            ("dora+loraplus", "dora+loraplus"),
            ("olora-tail", "olora-tail"),
            ("olora-gradient", "olora-gradient"),
            ("olora-gradient+c0.50", "olora-gradient+c0.5"),
            ("lora-gradient+c2+dora", "lora-gradient+dora+c2"),
        ] {
            let variant: Variant = text.parse().unwrap();
            assert_eq!(variant.to_string(), name);
            assert_eq!(name.parse::<Variant>().unwrap(), variant);
        }
    }

    #[test]
    fn what_is_no_variant_is_refused_by_name() {
        for (text, said) in [
            ("qlora", "there is no method `qlora`"),
            ("", "there is no method ``"),
            ("none", "there is no method `none`"),
            ("olora+pissa", "there is no modifier `pissa`"),
            ("lora+dora+dora", "`dora` is there twice"),
            ("olora+c0.5", "`c0.5` is for methods along the gradient"),
            ("olora-gradient+c0", "there is no modifier `c0`"),
            ("olora-gradient+c1+c2", "a scale is there twice"),
        ] {
            let error = text.parse::<Variant>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
