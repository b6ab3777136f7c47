//! What to attach, and where: the configuration of an adapter.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{AdapterError, target::Patterns};

/// The largest rank that can be asked for: no side of a layer that has one is
/// longer, vocabularies aside.
pub const MAX_RANK: usize = 65_536;
/// The most power iterations of a randomised decomposition. A handful makes it
/// nearly exact (Halko et al. 2011, section 4.5).
pub const MAX_ITERATIONS: usize = 1000;

/// How the factors start. Everything after the start is the same for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// `A` Kaiming-uniform, `B` zero (Hu et al. 2021, arXiv 2106.09685, with
    /// PEFT's initialisation).
    Lora,
    /// `A` normal with standard deviation `1/rank`, `B` zero (PEFT's
    /// `"gaussian"`).
    LoraGaussian,
    /// Both factors nonzero and in orthogonal subspaces, so that their product
    /// is zero (PEFT's `"orthogonal"`). The rank must be even.
    LoraOrthogonal,
    /// `B₀ = Q[:, :r]`, `A₀ = R[:r]` of the weight's QR factorisation
    /// (Büyükakyüz 2024, arXiv 2406.01775, as merged into PEFT).
    #[default]
    Olora,
    /// Orthonormal factors along the weight's least significant directions,
    /// `B₀ = U₋ᵣ`, `A₀ = V₋ᵣᵀ` of its singular value decomposition
    /// (arXiv 2606.02437).
    OloraTail,
    /// The weight's principal singular components, `B₀ = U_r·√(S_r/s)`,
    /// `A₀ = √(S_r/s)·V_rᵀ` (Meng et al. 2024, arXiv 2404.02948, as in PEFT).
    Pissa,
    /// The same with its minor components (Wang et al. 2024, arXiv 2406.09044).
    Milora,
    /// `A` along the principal directions of the layer's inputs, `B` zero, and
    /// ranks redistributed between layers by explained variance (Paischer et
    /// al. 2024, arXiv 2410.07170, as in PEFT). Needs a pass over data.
    Eva,
    /// Both factors orthonormal, along the leading singular directions of the
    /// loss's gradient, and their product taken out again. Needs a pass over
    /// data; see [`GradientDirections`](crate::GradientDirections).
    OloraGradient,
    /// `A` along the same directions, `B` zero.
    LoraGradient,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 10] = [
        Self::Lora,
        Self::LoraGaussian,
        Self::LoraOrthogonal,
        Self::Olora,
        Self::OloraTail,
        Self::Pissa,
        Self::Milora,
        Self::Eva,
        Self::OloraGradient,
        Self::LoraGradient,
    ];

    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::LoraGaussian => "lora-gaussian",
            Self::LoraOrthogonal => "lora-orthogonal",
            Self::Olora => "olora",
            Self::OloraTail => "olora-tail",
            Self::Pissa => "pissa",
            Self::Milora => "milora",
            Self::Eva => "eva",
            Self::OloraGradient => "olora-gradient",
            Self::LoraGradient => "lora-gradient",
        }
    }

    /// Whether the factors start from a product that is not zero, which has to
    /// be taken out again for step 0 to be the base model.
    pub fn is_anchored(self) -> bool {
        matches!(
            self,
            Self::Olora | Self::OloraTail | Self::Pissa | Self::Milora | Self::OloraGradient
        )
    }

    /// Whether the start is along the loss's gradient.
    pub fn is_of_gradient(self) -> bool {
        matches!(self, Self::OloraGradient | Self::LoraGradient)
    }

    /// Whether the start needs a pass over data.
    pub fn needs_data(self) -> bool {
        self == Self::Eva || self.is_of_gradient()
    }

    /// Whether the start is read off the weight's singular vectors.
    pub fn is_singular(self) -> bool {
        matches!(self, Self::OloraTail | Self::Pissa | Self::Milora)
    }
}

/// Where a nonzero start is taken out again, so that step 0 is the base model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The frozen starting factors are subtracted in the forward pass. The
    /// base stays as it was, bit for bit.
    #[default]
    Anchored,
    /// The starting product is subtracted from the stored weight, once
    /// (the papers' and PEFT's form).
    Residual,
}

/// The alphas that a scale in f32 follows from. Those of published adapters are
/// between 1 and some thousands.
pub(crate) const ALPHAS: RangeInclusive<f64> = 1e-9..=1e9;

/// What to attach. The field names are those of the recipe's `[adapter]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// How the factors start.
    pub method: Method,
    /// How step 0 is kept equal to the base model; only for methods that start
    /// from a nonzero update.
    pub placement: Placement,
    /// The rank of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Rank-stabilised: scaled by `alpha / √rank` instead (Kalajdzievski 2023,
    /// arXiv 2312.03732).
    pub rslora: bool,
    /// Weight-decomposed: each output's direction is updated by the factors, its
    /// magnitude trained by itself (`DoRA`, Liu et al. 2024, arXiv 2402.09353).
    pub dora: bool,
    /// For `pissa`: power iterations of a randomised decomposition, which takes
    /// seconds where the exact one takes minutes; exact if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterations: Option<usize>,
    /// Dropout on the adapter's input, during training.
    pub dropout: f64,
    /// Names, paths, globs, or `all-linear`: see [`resolve`](crate::resolve).
    pub targets: Vec<String>,
    /// Layers to leave out, by the same rules.
    pub exclude: Vec<String>,
    /// The numbers of the blocks to adapt, from zero; all if not given. Targets
    /// outside the blocks are not affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Other ranks for some layers, by the rules of `targets`.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some layers, by the rules of `targets`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules of which every weight trains and is saved whole, by name or
    /// path: `lm_head`, `model.norm`.
    pub modules_to_save: Vec<String>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            method: Method::default(),
            placement: Placement::default(),
            rank: 16,
            alpha: 16.0,
            rslora: false,
            dora: false,
            iterations: None,
            dropout: 0.0,
            targets: vec![crate::ALL_LINEAR.to_owned()],
            exclude: Vec::new(),
            layers: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
        }
    }
}

/// The rank of one layer and what its update is scaled by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerShape {
    /// The rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// `alpha / rank`, or `alpha / √rank`.
    pub scale: f64,
}

impl AdapterConfig {
    /// The scale of layers that no pattern names.
    pub fn scale(&self) -> f64 {
        self.shape(self.rank, self.alpha).scale
    }

    /// A layer of this rank and alpha.
    pub fn shape(&self, rank: usize, alpha: f64) -> LayerShape {
        let by = if self.rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        LayerShape {
            rank,
            alpha,
            scale: alpha / by,
        }
    }

    /// Checks what can be checked without a model.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let out_of_range = |key, found: String, expected| {
            Err(AdapterError::OutOfRange {
                key,
                found,
                expected,
            })
        };
        let ranks = self.rank_pattern.values().copied().chain([self.rank]);
        for rank in ranks.clone() {
            if !(1..=MAX_RANK).contains(&rank) {
                let expected = "between 1 and 65536: no larger than the layer's smaller side";
                return out_of_range("rank", rank.to_string(), expected);
            }
        }
        // In 32 bits, as devices compute it.
        let is_single = |number: f64| number > 0.0 && (number as f32).is_normal();
        let alphas = self.alpha_pattern.values().copied().chain([self.alpha]);
        for alpha in alphas {
            let mut scales = ranks.clone().map(|rank| self.shape(rank, alpha).scale);
            if !is_single(alpha) || !scales.all(is_single) {
                let expected = "above 0 and finite, and its scale too, in 32 bits";
                return out_of_range("alpha", format!("{alpha:?}"), expected);
            }
        }
        // Rounded to 1, it would divide by zero.
        if !(self.dropout >= 0.0 && (self.dropout as f32) < 1.0) {
            return out_of_range(
                "dropout",
                format!("{:?}", self.dropout),
                "at least 0 and below 1, in 32 bits too",
            );
        }
        if !self.method.is_anchored() && self.placement == Placement::Residual {
            return out_of_range(
                "placement",
                "residual".to_owned(),
                "left out for methods that start from a zero update and have nothing to take out",
            );
        }
        if self.method == Method::OloraGradient && self.placement == Placement::Residual {
            // The base would be rewritten by a start that only the first session knows.
            let expected = "\"anchored\" for `method = \"olora-gradient\"`";
            return out_of_range("placement", "residual".to_owned(), expected);
        }
        if let Some(iterations) = self.iterations.filter(|_| self.method != Method::Pissa) {
            let expected = "left out: only `method = \"pissa\"` has a randomised form";
            return out_of_range("iterations", iterations.to_string(), expected);
        }
        if let Some(iterations) = self.iterations.filter(|n| *n > MAX_ITERATIONS) {
            let expected = "at most 1000: a handful makes the decomposition nearly exact";
            return out_of_range("iterations", iterations.to_string(), expected);
        }
        if self.method == Method::LoraOrthogonal {
            for rank in ranks {
                if !rank.is_multiple_of(2) {
                    let expected = "even for `method = \"lora-orthogonal\"`, which halves it";
                    return out_of_range("rank", rank.to_string(), expected);
                }
            }
        }
        if self.method == Method::Eva && !self.rank_pattern.is_empty() {
            let expected = "left out for `method = \"eva\"`, which distributes the ranks itself";
            return out_of_range("rank_pattern", "given".to_owned(), expected);
        }
        Ok(())
    }

    /// Checks what can be checked of the patterns without a model: that there
    /// are targets, and that all can be read.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NoTargets`] and [`AdapterError::BadPattern`].
    pub fn check_patterns(&self) -> Result<(), AdapterError> {
        if self.targets.is_empty() {
            return Err(AdapterError::NoTargets(
                "the list of targets is empty".to_owned(),
            ));
        }
        let lists = self.targets.iter().chain(&self.exclude);
        let all = lists
            .chain(self.rank_pattern.keys())
            .chain(self.alpha_pattern.keys());
        Patterns::new(all).map(|_| ())
    }
}
