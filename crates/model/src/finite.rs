//! Where the numbers of a forward pass stop being finite.

use std::{collections::BTreeSet, fmt};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId, list_param_ids},
    tensor::{DType, Tensor},
};

use olora_adapter::{Parameter, params};

use crate::{Llama, ModelError, Positions};

/// The first thing in a forward pass that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub enum NotFinite {
    /// A weight.
    Weight {
        /// Its name in the checkpoint, or its path if it is an adapter's.
        name: String,
        /// The first such value that it holds.
        value: f32,
    },
    /// What a part computes from finite input with finite weights.
    Output {
        /// The part: `the embedding`, `the positions`, `layer 3` (from 0), `the
        /// last norm` or `the vocabulary projection`.
        of: String,
        /// The first such value in it.
        value: f32,
        /// Its number format.
        dtype: DType,
    },
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight { name, value } => write!(
                f,
                "`{name}` holds {value}. Either its file is damaged, or its training diverged"
            ),
            Self::Output { of, value, dtype } => {
                write!(
                    f,
                    "the output of {of} holds {value}, though its input and its weights are finite. "
                )?;
                match dtype {
                    DType::F16 => f.write_str(
                        "float16 ends at 65504: hold the weights in bfloat16 or float32 instead",
                    ),
                    _ => f.write_str(
                        "Either its weights are too large, or the device computes wrongly: \
                         `olora doctor` examines it",
                    ),
                }
            }
        }
    }
}

/// Logits of this many positions are made at a time.
const POSITIONS: usize = 64;

/// Runs a forward pass part by part and finds the first whose output is not
/// finite, and in that part the first weight that is not. `None` if the whole
/// pass is finite. Weights that it does not reach, such as an embedding's rows
/// of other tokens, do not count.
///
/// For when logits or a loss have turned out not to be finite: the output of
/// every part is read back from the device.
///
/// # Shapes
///
/// - embedded: `[batch, seq, hidden_size]`, as [`Llama::embed`] gives it
/// - positions: those of `embedded`, from [`Llama::positions`] or
///   [`Llama::positions_in_documents`]
///
/// # Errors
///
/// [`ModelError::Device`] if something cannot be read back.
pub fn first_not_finite(
    model: &Llama,
    embedded: Tensor<3>,
    positions: &Positions,
) -> Result<Option<NotFinite>, ModelError> {
    let decoder = &model.model;
    let embedding = &decoder.embed_tokens;
    if let Some(found) = look(model, &embedded, "the embedding", embedding)? {
        return Ok(Some(found));
    }
    let mut x = model.with_positions(embedded, positions);
    if let Some(found) = look(model, &x, "the positions", &decoder.embed_positions)? {
        return Ok(Some(found));
    }
    for (layer_idx, layer) in decoder.layers.iter().enumerate() {
        x = layer.forward(x, positions);
        if let Some(found) = look(model, &x, &format!("layer {layer_idx}"), layer)? {
            return Ok(Some(found));
        }
    }
    x = decoder.norm.forward(x);
    if let Some(found) = look(model, &x, "the last norm", &decoder.norm)? {
        return Ok(Some(found));
    }
    let [batch, seq, width] = x.dims();
    for hidden in x.reshape([batch * seq, width]).split(POSITIONS, 0) {
        let logits = model.logits(hidden);
        let of = "the vocabulary projection";
        let found = match &model.lm_head {
            Some(lm_head) => look(model, &logits, of, lm_head)?,
            None => look(model, &logits, of, embedding)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What is not finite about the `output` of a part: a weight of it, or else the
/// output alone.
fn look<const D: usize>(
    model: &Llama,
    output: &Tensor<D>,
    of: &str,
    part: &impl Module,
) -> Result<Option<NotFinite>, ModelError> {
    let Some(value) = not_finite(output, &format!("the output of {of}"))? else {
        return Ok(None);
    };
    let weight = weight_not_finite(model, part)?;
    Ok(Some(weight.unwrap_or_else(|| NotFinite::Output {
        of: of.to_owned(),
        value,
        dtype: output.dtype(),
    })))
}

/// The first weight of a part that is not finite.
fn weight_not_finite(model: &Llama, part: &impl Module) -> Result<Option<NotFinite>, ModelError> {
    /// The part does not know where it is: it is found again in the whole model,
    /// which knows the file's names.
    struct Finder {
        wanted: BTreeSet<ParamId>,
        path: Vec<String>,
        found: Result<Option<NotFinite>, ModelError>,
    }
    impl ModuleVisitor for Finder {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if matches!(self.found, Ok(None)) && self.wanted.contains(&param.id) {
                let name = self.path.join(".");
                let value = not_finite(&param.base(), &name);
                self.found =
                    value.map(|value| value.map(|value| NotFinite::Weight { name, value }));
            }
        }
    }
    // What is packed was looked at when it was read, and its parameter is hollow.
    let packed: BTreeSet<ParamId> = params(model)
        .iter()
        .filter(|param| param.packed().is_some())
        .map(Parameter::id)
        .collect();
    let wanted = list_param_ids(part).into_iter();
    let mut finder = Finder {
        wanted: wanted.filter(|id| !packed.contains(id)).collect(),
        path: Vec::new(),
        found: Ok(None),
    };
    model.visit(&mut finder);
    finder.found
}

/// The first value that is NaN or infinite. The host looks for it: a device that
/// may be at fault is asked for its numbers, not for its judgement of them.
fn not_finite<const D: usize>(tensor: &Tensor<D>, what: &str) -> Result<Option<f32>, ModelError> {
    let data = tensor.clone().without_autodiff().try_into_data();
    let data = data.map_err(|error| ModelError::device(what, &error))?;
    let value = data.iter::<f32>().find(|value| !value.is_finite());
    Ok(value)
}
