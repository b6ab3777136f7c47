//! What tensors are called in GGUF files and in Hugging Face checkpoints, and
//! how their contents differ.

use crate::families::{Family, Stack};

/// (Hugging Face, GGUF) names of what stands outside the blocks.
const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// `token_embd.weight` → `model.embed_tokens.weight`; `None` for unknown names.
pub(crate) fn to_hugging_face(family: &Family, gguf: &str) -> Option<String> {
    let (module, kind) = split_kind(gguf)?;
    if let Some((hf, _)) = OUTSIDE.iter().find(|(_, name)| *name == module) {
        return Some(format!("{hf}.{kind}"));
    }
    let (block, module) = module.strip_prefix("blk.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    if let Some((name, number)) = module.split_once('.') {
        let stack = stack(family, name)?;
        let Stack {
            experts, matrix, ..
        } = stack;
        let number: u32 = number.parse().ok()?;
        return Some(format!(
            "model.layers.{block}.{experts}.{number}.{matrix}.{kind}"
        ));
    }
    let (hf, _) = family.inside().find(|(_, name)| *name == module)?;
    Some(format!("model.layers.{block}.{hf}.{kind}"))
}

/// `model.embed_tokens.weight` → `token_embd.weight`; `None` for unknown names.
pub(crate) fn to_gguf(family: &Family, hf: &str) -> Option<String> {
    let (module, kind) = split_kind(hf)?;
    module_to_gguf(family, module).map(|module| format!("{module}.{kind}"))
}

/// `model.layers.3.self_attn.q_proj` → `blk.3.attn_q`.
pub(crate) fn module_to_gguf(family: &Family, hf: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTSIDE.iter().find(|(name, _)| *name == hf) {
        return Some((*gguf).to_owned());
    }
    let (block, module) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let of_expert = |stack: &Stack| {
        let rest = module.strip_prefix(stack.experts)?.strip_prefix('.')?;
        let number = rest.strip_suffix(stack.matrix)?.strip_suffix('.')?;
        let number: u32 = number.parse().ok()?;
        Some(format!("blk.{block}.{}.{number}", stack.gguf))
    };
    if let Some(name) = family.stacks.iter().find_map(of_expert) {
        return Some(name);
    }
    let (_, gguf) = family.inside().find(|(name, _)| *name == module)?;
    Some(format!("blk.{block}.{gguf}"))
}

/// The stack of that name within a block.
pub(crate) fn stack<'a>(family: &'a Family, gguf: &str) -> Option<&'a Stack> {
    family.stacks.iter().find(|stack| stack.gguf == gguf)
}

/// The tensor that a matrix of an expert is in, and its number there: of
/// `blk.0.ffn_up_exps.7.weight`, `blk.0.ffn_up_exps.weight` and 7. No file has
/// the former name.
pub(crate) fn in_stack(gguf: &str) -> Option<(String, usize)> {
    let (module, kind) = split_kind(gguf)?;
    let (stack, number) = module.rsplit_once('.')?;
    let number = number.parse().ok()?;
    // A block's number is no expert's.
    stack
        .contains('.')
        .then(|| (format!("{stack}.{kind}"), number))
}

fn split_kind(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.')
        .filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
}

/// Tensors that older converters wrote and that nothing reads.
pub(crate) fn is_ignorable(gguf: &str) -> bool {
    gguf.ends_with("attn_rot_embd.weight")
        || gguf.ends_with("rotary_emb.inv_freq")
        || gguf.ends_with("attention.rotary_emb.inv_freq")
}

/// How the numbers of a tensor in a file differ from those in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// The rows of each of this many heads are interleaved: llama.cpp rotates
    /// neighbours, Hugging Face the first half of a head with its second.
    Interleaved {
        heads: usize,
    },
    /// The file has 1 + w, Gemma's own norms multiply by it.
    PlusOne,
}

impl Change {
    /// What was done to a tensor of a Hugging Face module when a file was made.
    pub(crate) fn of(family: &Family, module: &str, heads: Heads) -> Self {
        let interleaved = |heads| Self::Interleaved { heads };
        if family.interleaved && module.ends_with("self_attn.q_proj") {
            interleaved(heads.queries)
        } else if family.interleaved && module.ends_with("self_attn.k_proj") {
            interleaved(heads.keys)
        } else if family.norms_plus_one && module.ends_with("norm") {
            Self::PlusOne
        } else {
            Self::None
        }
    }

    /// The row of a checkpoint's tensor that is row `row` in the file.
    pub(crate) fn source_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Interleaved { heads } => {
                let width = rows / heads;
                let (head, within) = (row / width, row % width);
                head * width + within % 2 * (width / 2) + within / 2
            }
            Self::None | Self::PlusOne => row,
        }
    }

    /// The row of the file that is row `row` of a checkpoint's tensor: the inverse of
    /// [`Self::source_row`].
    pub(crate) fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Interleaved { heads } => {
                let width = rows / heads;
                let (head, within) = (row / width, row % width);
                head * width + within % (width / 2) * 2 + within / (width / 2)
            }
            Self::None | Self::PlusOne => row,
        }
    }

    /// Whether rows can be rearranged like this.
    pub(crate) fn fits(self, rows: usize) -> bool {
        match self {
            Self::Interleaved { heads } => {
                // Zero heads are none that rows could be divided among.
                heads > 0 && heads.checked_mul(2).is_some_and(|n| rows.is_multiple_of(n))
            }
            Self::None | Self::PlusOne => true,
        }
    }
}

/// How many heads of attention there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
}
