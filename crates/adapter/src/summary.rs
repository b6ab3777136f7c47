//! What trains in a module, and where adapters are.
//!
//! Burn's own display of a module prints an adapted weight like any other: what
//! is attached to a parameter has no part in it.

use std::fmt;

use burn::module::Module;

use crate::{
    AdapterConfig, AdapterError, Kind, Placement,
    params::{Parameter, Role, params},
    planned::Shapes,
};

/// What trains in a module, and where adapters are. Prints as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// The adapted layers, in the module's own order.
    pub layers: Vec<AdaptedLayer>,
    /// The parameters that train whole beside the factors, with their shapes.
    pub saved: Vec<(String, Vec<usize>)>,
    /// How many values train.
    pub n_trained: usize,
    /// How many values there are, the constants that adapters keep included.
    pub n_params: usize,
}

/// One layer with an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedLayer {
    /// Its path, without `.weight`.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// The weight's shape, `[d_in, d_out]`.
    pub dims: [usize; 2],
    /// The rank of the update.
    pub rank: usize,
    /// What the update is scaled by.
    pub scale: f64,
    /// Where a nonzero start is taken out again; `None` if it starts from zero.
    pub placement: Option<Placement>,
    /// Whether the update is weight-decomposed.
    pub dora: bool,
}

/// What trains in `module`, and where adapters are, which were attached with
/// `config`. Initialises no lazy parameter.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
/// use olora_adapter::{AdapterConfig, attach, summary};
///
/// let layer = |d_in, d_out| LinearConfig::new(d_in, d_out).init(&Device::flex());
/// let model = vec![layer(8, 16), layer(16, 4)];
/// let config = AdapterConfig {
///     rank: 2,
///     alpha: 4.0,
///     targets: vec!["0".to_owned()],
///     modules_to_save: vec!["1".to_owned()],
///     ..AdapterConfig::default()
/// };
/// let model = attach(model, &config, 42, &mut |_done, _all| {})?;
/// assert_eq!(
///     summary(&model, &config)?.to_string(),
///     "\
/// layer  weight   rank  scale  start
/// 0      [8, 16]  2     2      anchored
/// trained whole: 1.weight [16, 4], 1.bias [4]
/// 116 of 308 parameters train (37.66 %)"
/// );
/// # Ok::<(), olora_adapter::AdapterError>(())
/// ```
///
/// # Errors
///
/// [`AdapterError::BadPattern`] and [`AdapterError::Impossible`] if the patterns
/// of `config` are not such that anything can have been attached with them.
pub fn summary<M: Module>(
    module: &M,
    config: &AdapterConfig,
) -> Result<AdapterSummary, AdapterError> {
    let all = params(module);
    let n_values = |params: &mut dyn Iterator<Item = &Parameter>| {
        params.map(Parameter::num_elements).sum::<usize>()
    };
    let shapes = Shapes::new(config)?;
    let mut layers = Vec::new();
    for layer in all.chunk_by(|a, b| a.layer() == b.layer()) {
        let shape = |role| {
            let param = layer.iter().find(|param| param.role() == role)?;
            <[usize; 2]>::try_from(param.shape()).ok()
        };
        let (Some([d_in, rank]), Some([_, d_out])) = (shape(Role::A), shape(Role::B)) else {
            continue;
        };
        let (path, kind) = (layer[0].layer(), layer[0].kind().unwrap_or(Kind::Linear));
        layers.push(AdaptedLayer {
            path: path.to_owned(),
            kind,
            dims: [d_in, d_out],
            rank,
            scale: shapes.scale(path, kind, rank)?,
            placement: shape(Role::AnchorA).map(|_| config.placement),
            dora: layer.iter().any(|param| param.role() == Role::Magnitude),
        });
    }
    let saved = all.iter().filter(|param| param.role() == Role::Saved);
    Ok(AdapterSummary {
        layers,
        saved: saved
            .map(|param| (param.path().to_owned(), param.shape()))
            .collect(),
        n_trained: n_values(&mut all.iter().filter(|param| param.trains())),
        n_params: n_values(&mut all.iter()),
    })
}

impl AdaptedLayer {
    fn start(&self) -> String {
        let start = match self.placement {
            None => "zero",
            Some(Placement::Anchored) => "anchored",
            Some(Placement::Residual) => "residual",
        };
        let dora = if self.dora { ", DoRA" } else { "" };
        let embedding = if self.kind == Kind::Embedding {
            ", embedding"
        } else {
            ""
        };
        format!("{start}{dora}{embedding}")
    }
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["layer", "weight", "rank", "scale", "start"].map(str::to_owned);
        let rows = self.layers.iter().map(|layer| {
            [
                layer.path.clone(),
                format!("{:?}", layer.dims),
                layer.rank.to_string(),
                layer.scale.to_string(),
                layer.start(),
            ]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2), width(3)];
        if self.layers.is_empty() {
            writeln!(f, "no adapter")?;
        } else {
            for [path, dims, rank, scale, start] in &rows {
                let [w0, w1, w2, w3] = widths;
                writeln!(
                    f,
                    "{path:w0$}  {dims:w1$}  {rank:w2$}  {scale:w3$}  {start}"
                )?;
            }
        }
        if !self.saved.is_empty() {
            let saved = self.saved.iter();
            let saved: Vec<_> = saved
                .map(|(path, shape)| format!("{path} {shape:?}"))
                .collect();
            writeln!(f, "trained whole: {}", saved.join(", "))?;
        }
        let share = 100.0 * self.n_trained as f64 / self.n_params.max(1) as f64;
        let (n_trained, n_params) = (self.n_trained, self.n_params);
        write!(
            f,
            "{n_trained} of {n_params} parameters train ({share:.2} %)"
        )
    }
}
