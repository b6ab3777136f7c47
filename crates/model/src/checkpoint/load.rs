//! A model out of a checkpoint's tensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::{
    module::Param,
    tensor::{DType, Device, Tensor},
};
use olora_adapter::{Kind, MapParams, PackedBase, Place, hollow, map_params, params, put_on};
use olora_operations::{PackedTensor, Products};
use olora_packed::{Format, Packed};

use super::{Dtype, source::Source};
use crate::{Dense, Llama, Matrices, ModelConfig, ModelError, Packing};

const HEAD: &str = "lm_head.weight";
/// The head of a text model within a larger one.
const HEAD_WITHIN: &str = "language_model.lm_head.weight";
const PREFIX: &str = "model.";

/// Loads a checkpoint: a GGUF file, or a directory with `config.json` beside
/// safetensors, or beside what `torch.save` wrote (`pytorch_model.bin`), each in
/// one file or in several with an index.
///
/// The weights are read and converted one at a time into `dtype`, so the peak
/// is the model and one tensor, which all but safetensors hold twice: as it
/// was read and as it will be. Matrices that the file has packed stay packed, see
/// [`load_as`]. All of them are frozen or trained as the caller decides later;
/// none is tracked by autodiff here.
///
/// # Errors
///
/// [`ModelError::Mismatch`] lists every missing, unused and misshapen tensor;
/// [`ModelError::NotFiniteWeight`] and [`ModelError::DoesNotFit`] name one whose
/// values are no numbers, or not in `dtype`.
pub fn load(
    path: &Path,
    dtype: Dtype,
    device: &Device,
) -> Result<(Llama, ModelConfig), ModelError> {
    load_as(path, dtype, Packing::Stored, device)
}

/// [`load`], with the choice of the form that matrices are held in.
///
/// # Errors
///
/// As [`load`].
pub fn load_as(
    path: &Path,
    dtype: Dtype,
    matrices: impl Into<Matrices>,
    device: &Device,
) -> Result<(Llama, ModelConfig), ModelError> {
    let matrices = matrices.into();
    let config = ModelConfig::from_path(path)?;
    let model = config.init(device);
    let mut loader = Loader {
        names: Names::checked(path, &config, &model)?,
        dtype,
        matrices,
        packed: BTreeMap::new(),
        error: None,
    };
    let model = map_params(model, &mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    refuse_wrong_device(&loader.packed, device)?;
    Ok((put_on(model, loader.packed), config))
}

/// Refuses a device that does not unpack as the CPU does, by a row of each format:
/// before anything is computed with wrong weights.
fn refuse_wrong_device(
    packed: &BTreeMap<String, PackedBase>,
    device: &Device,
) -> Result<(), ModelError> {
    let mut seen = BTreeSet::new();
    for base in packed.values() {
        let format = base.tensor.packed().format().to_string();
        if seen.contains(&format) {
            continue;
        }
        let found = match base.tensor.is_unpacked_by(device) {
            Ok(true) => None,
            Ok(false) => Some("other values come out than on the CPU".to_owned()),
            Err(error) => Some(error),
        };
        if let Some(found) = found {
            return Err(ModelError::NotUnpacked { format, found });
        }
        seen.insert(format);
    }
    Ok(())
}

/// A model whose matrices, as far as they are dense, are held in bfloat16, as
/// [`Dense::Bf16`] says: what [`load_as`] gives, of weights that were drawn.
///
/// # Errors
///
/// [`ModelError::Device`] if values cannot be read, or bfloat16 does not hold them.
pub fn hold_in_bf16(model: Llama, products: Products) -> Result<Llama, ModelError> {
    struct Hold {
        products: Products,
        packed: BTreeMap<String, PackedBase>,
        error: Option<ModelError>,
    }
    impl Hold {
        fn matrix(&self, kind: Kind, weight: Tensor<2>) -> Result<PackedBase, String> {
            let weight = match kind {
                Kind::Linear => weight.transpose(),
                Kind::Embedding => weight,
            };
            let shape = weight.dims();
            let values = weight.try_into_data().map_err(|error| error.to_string())?;
            let values: Vec<f32> = values.iter().collect();
            let packed = Packed::pack(Format::Bf16, shape, &values);
            let packed = packed.map_err(|error| error.to_string())?;
            Ok(PackedBase {
                tensor: PackedTensor::new(packed).with_products(self.products),
                kind,
            })
        }
    }
    impl MapParams for Hold {
        fn map<const D: usize>(
            &mut self,
            place: &Place,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            let is_matrix = D == 2 && place.name() == "weight" && !is_positions(place);
            let Some(kind) = place.kind.filter(|_| is_matrix && self.error.is_none()) else {
                return param;
            };
            let shape: [usize; 2] = [param.lazy_shape()[0], param.lazy_shape()[1]];
            match self.matrix(kind, param.val().reshape(shape)) {
                Ok(packed) => {
                    self.packed.insert(place.layer().to_owned(), packed);
                    let (device, id) = (param.lazy_device(), param.id);
                    let hollow = hollow(param.lazy_shape().dims(), &device, DType::F32);
                    param.transform_for_load(hollow, id).set_require_grad(false)
                }
                Err(reason) => {
                    self.error = Some(ModelError::device(&place.path, &reason));
                    param
                }
            }
        }
    }
    let mut hold = Hold {
        products,
        packed: BTreeMap::new(),
        error: None,
    };
    let model = map_params(model, &mut hold);
    match hold.error {
        Some(error) => Err(error),
        None => Ok(put_on(model, hold.packed)),
    }
}

/// Learned positions are few, and read by Burn's own embedding.
fn is_positions(place: &Place) -> bool {
    place.layer().ends_with("embed_positions")
}

/// A matrix of a base that is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedMatrix {
    /// What it is packed in.
    pub format: Format,
    /// Bytes in the file, or in memory on the CPU.
    pub bytes: u64,
    /// Bytes on a device without kernels of ours: codes in words, scales in f32.
    pub placed: u64,
}

impl PackedMatrix {
    /// Whether its values are plain numbers, as [`Dense`] says.
    pub fn is_plain(&self) -> bool {
        self.format.is_plain()
    }
}

/// What [`packed_matrices`] would say of a checkpoint of such a model whose
/// matrices are all dense.
pub fn drawn_matrices(config: &ModelConfig, matrices: Matrices) -> BTreeMap<String, PackedMatrix> {
    if !matches!(matrices.dense, Dense::Bf16(_)) {
        return BTreeMap::new();
    }
    #[allow(
        clippy::default_trait_access,
        reason = "any device will do: nothing is put on it"
    )]
    let model = config.init(&Default::default());
    let all = params(&model).into_iter().filter(|param| {
        let place = param.place();
        place.kind.is_some() && place.name() == "weight" && !is_positions(place)
    });
    let held = all.map(|param| {
        let bytes = 2 * param.num_elements() as u64;
        let matrix = PackedMatrix {
            format: Format::Bf16,
            bytes,
            placed: bytes,
        };
        (param.path().to_owned(), matrix)
    });
    held.collect()
}

/// The matrices of a checkpoint that are packed, by the name that the model has
/// for each, from the files' headers alone.
///
/// # Errors
///
/// As [`load`] for configurations and headers.
pub fn packed_matrices(
    path: &Path,
    config: &ModelConfig,
    matrices: impl Into<Matrices>,
) -> Result<BTreeMap<String, PackedMatrix>, ModelError> {
    let matrices = matrices.into();
    if matrices == Packing::None.into() {
        return Ok(BTreeMap::new());
    }
    #[allow(
        clippy::default_trait_access,
        reason = "any device will do: nothing is put on it"
    )]
    let model = config.init(&Default::default());
    let names = Names::new(path, config, &expected_tensors(&model))?;
    let mut all = BTreeMap::new();
    for param in params(&model) {
        let stored = names.stored(param.path());
        let Some(format) = names.format(param.place(), stored, matrices) else {
            continue;
        };
        let Some(&[rows, columns]) = names.source.shape(stored) else {
            continue;
        };
        if let Ok(bytes) = format.bytes([rows, columns]) {
            let n = rows * columns;
            let placed = format.code_layout().map_or(bytes, |layout| {
                let scales = 1 + usize::from(layout.offsets);
                n / 8 * layout.bits + n / layout.group * 4 * scales
            });
            let matrix = PackedMatrix {
                format,
                bytes: bytes as u64,
                placed: placed as u64,
            };
            all.insert(param.path().to_owned(), matrix);
        }
    }
    Ok(all)
}

/// Name → shape as PyTorch has it.
type Shapes = BTreeMap<String, Vec<usize>>;

fn expected_tensors(model: &Llama) -> Shapes {
    let all = params(model).into_iter();
    all.map(|param| (param.path().to_owned(), param.torch_shape()))
        .collect()
}

/// What transformers 5 calls a parameter of Mixtral's experts in memory, where
/// files have another name.
fn of_experts_in_memory(name: &str) -> Option<String> {
    if !name.contains(".block_sparse_moe.") {
        return None;
    }
    let name = name.replace(".block_sparse_moe.", ".mlp.");
    let matrices = [
        ("w1.weight", "gate_proj.weight"),
        ("w2.weight", "down_proj.weight"),
        ("w3.weight", "up_proj.weight"),
    ];
    let renamed = matrices.iter().find_map(|(file, memory)| {
        let rest = name.strip_suffix(file)?;
        Some(format!("{rest}{memory}"))
    });
    Some(renamed.unwrap_or(name))
}

/// The stored tensors by the names that the model has for them.
pub(super) struct Names {
    pub(super) source: Source,
    /// The embedding's name if `config.json` ties the head to it.
    embedding: Option<String>,
    /// By the model's names, those that the source has in their place: of a text
    /// model within a larger one, or of experts.
    within: BTreeMap<String, String>,
    /// Whether the source holds a model that reads pictures too.
    with_pictures: bool,
}

/// What stands before the names of the parts that read pictures.
const PICTURES: [&str; 4] = [
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
];

/// What a text model's parameter is called within a larger one, in files of
/// transformers 4 and of version 5.
fn names_within(name: &str) -> impl Iterator<Item = String> {
    let older = format!("language_model.{name}");
    let newer = name
        .strip_prefix(PREFIX)
        .map(|bare| format!("{PREFIX}language_model.{bare}"));
    std::iter::once(older).chain(newer)
}

impl Names {
    fn new(path: &Path, config: &ModelConfig, expected: &Shapes) -> Result<Self, ModelError> {
        let source = Source::open(path)?;
        let with_pictures = config.with_pictures;
        let mut within = BTreeMap::new();
        for name in expected.keys().filter(|name| !source.has(name)) {
            let names = names_within(name).filter(|_| with_pictures);
            let mut names = names.chain(of_experts_in_memory(name));
            if let Some(stored) = names.find(|stored| source.has(stored)) {
                within.insert(name.clone(), stored);
            }
        }
        Ok(Self {
            source,
            within,
            with_pictures,
            // A tied head is the embedding, whatever the family calls that.
            embedding: expected
                .keys()
                .find(|name| name.ends_with("embed_tokens.weight"))
                .filter(|_| !expected.contains_key(HEAD))
                .cloned(),
        })
    }

    /// Those of a checkpoint that has all that the model asks for, and nothing else.
    pub(super) fn checked(
        path: &Path,
        config: &ModelConfig,
        model: &Llama,
    ) -> Result<Self, ModelError> {
        let expected = expected_tensors(model);
        let names = Self::new(path, config, &expected)?;
        let problems = names.problems(&expected)?;
        if problems.is_empty() {
            return Ok(names);
        }
        Err(ModelError::Mismatch {
            directory: path.to_owned(),
            problems,
        })
    }

    /// What a parameter is to be packed in, if at all.
    fn format(&self, place: &Place, stored: &str, matrices: Matrices) -> Option<Format> {
        let kind = place.kind.filter(|_| place.name() == "weight")?;
        if is_positions(place) {
            return None;
        }
        let packed = match matrices.packing {
            Packing::None => None,
            Packing::Stored => self.source.format(stored),
            Packing::As(_) if kind == Kind::Embedding || place.path == HEAD => {
                self.source.format(stored)
            }
            Packing::As(quantize) => {
                let format = quantize.format();
                let [_, columns] = self.source.shape(stored)? else {
                    return None;
                };
                let fits = format.row_bytes(*columns).is_ok();
                fits.then_some(format)
            }
        };
        packed.or_else(|| match matrices.dense {
            Dense::Tensors => None,
            Dense::AsStored => self.source.plain_format(stored),
            Dense::Bf16(_) => Some(Format::Bf16),
        })
    }

    /// The stored name: the model's own, or without the prefix if only the
    /// decoder below the head was saved, or the head's if it is tied to the
    /// embedding and stored in its place.
    pub(super) fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        if self.source.has(name) {
            return name;
        }
        if let Some(stored) = self.within.get(name) {
            return stored;
        }
        if let Some(bare) = name.strip_prefix(PREFIX)
            && self.source.has(bare)
        {
            return bare;
        }
        if self.embedding.as_deref() == Some(name) && self.source.has(HEAD) {
            return HEAD;
        }
        name
    }

    /// What is missing, misshapen or unused.
    fn problems(&self, expected: &Shapes) -> Result<Vec<String>, ModelError> {
        let mut problems = Vec::new();
        let mut used = BTreeSet::new();
        for (name, shape) in expected {
            let stored = self.stored(name);
            used.insert(stored);
            match self.source.shape(stored) {
                None => problems.push(format!("missing: `{name}`, expected as {shape:?}")),
                Some(found) if found != shape => problems.push(format!(
                    "misshapen: `{stored}` is {found:?}, expected {shape:?}"
                )),
                Some(_) => {}
            }
        }
        for name in self.source.names() {
            let for_pictures = |prefix: &&str| name.starts_with(*prefix);
            if used.contains(name)
                || self.source.is_idle(name)
                || (self.with_pictures && PICTURES.iter().any(for_pictures))
            {
                continue;
            }
            match &self.embedding {
                // A tied checkpoint may repeat the embedding under the head's name.
                Some(embedding) if name == HEAD || name == HEAD_WITHIN => {
                    if !self.source.same(name, self.stored(embedding))? {
                        problems.push(format!(
                            "unused: `{name}` differs from the embedding that config.json ties it to"
                        ));
                    }
                }
                _ => problems.push(format!("unused: `{name}`")),
            }
        }
        Ok(problems)
    }
}

/// Puts the stored tensors in the place of the (never initialised) random ones.
struct Loader {
    names: Names,
    dtype: Dtype,
    matrices: Matrices,
    /// By the path of the layer.
    packed: BTreeMap<String, PackedBase>,
    error: Option<ModelError>,
}

impl Loader {
    /// The packed matrix for a parameter, if it is to be one.
    fn packed(&self, place: &Place, stored: &str) -> Result<Option<PackedBase>, ModelError> {
        let format = self.names.format(place, stored, self.matrices);
        let Some((format, kind)) = format.zip(place.kind) else {
            return Ok(None);
        };
        let mut packed = self.names.source.packed_as(stored, format)?;
        if self.matrices.interleaved
            && let Some(interleaved) = packed.as_ref().and_then(Packed::interleaved)
        {
            packed = Some(interleaved);
            self.names.source.done_with(stored);
        }
        Ok(packed.map(|packed| PackedBase {
            tensor: PackedTensor::new(packed).with_products(self.matrices.products()),
            kind,
        }))
    }
}

impl MapParams for Loader {
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let shape = param.lazy_shape().to_vec();
        let stored = self.names.stored(&place.path);
        let device = param.lazy_device();
        let id = param.id;
        match self.packed(place, stored) {
            Ok(None) => {}
            Ok(Some(packed)) => {
                self.packed.insert(place.layer().to_owned(), packed);
                let shape: [usize; D] = param.lazy_shape().dims();
                let hollow = hollow(shape, &device, DType::from(self.dtype));
                // It has no gradient.
                return param.transform_for_load(hollow, id).set_require_grad(false);
            }
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        }
        let transposed = place.is_transposed(D);
        let data = self
            .names
            .source
            .read(stored, &shape, transposed, self.dtype);
        match data {
            Ok(data) => {
                let tensor = Tensor::<D>::from_data(data, (&device, DType::from(self.dtype)));
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
