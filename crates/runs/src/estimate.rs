//! How much memory a run takes, before it takes it.

use olora_files::size;
use olora_model::{Activation, Dtype, Experts, ModelConfig, NormKind, NormOrder, QkNorm};
use olora_training::{HeadShape, Objective, Recompute};
use serde::Serialize;

use crate::counts::Counts;

/// Bytes that a run holds at its peak, by what they are for.
///
/// Counted from the tensors that this decoder's operations keep for the
/// backward pass. What a device's allocator keeps beyond that is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The frozen base.
    pub weights: u64,
    /// What trains, its gradients and the optimiser's two moments, and what an
    /// update needs.
    pub trained: u64,
    /// What the blocks keep for the backward pass.
    pub activations: u64,
    /// What an operation needs while it runs.
    pub workspace: u64,
    /// What the objective holds: logits of some rows, and the gradient of the
    /// hidden states.
    pub logits: u64,
    /// The program, its data and its threads, where they share the memory.
    pub process: u64,
    /// What a start along the gradient holds before the first step, at its peak, in
    /// the place of what training holds; 0 for other starts.
    #[serde(skip_serializing_if = "is_zero")]
    pub start: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What an estimate follows from.
#[allow(
    clippy::struct_excessive_bools,
    reason = "what a run has or has not, each by itself"
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) counts: Counts,
    /// The base's matrices that stay packed.
    pub(crate) packed: PackedShare,
    /// Whether adapted layers keep their output for a magnitude.
    pub(crate) dora: bool,
    /// Whether something trains whole beside the adapter.
    pub(crate) trains_whole: bool,
    /// Whether adapters drop some of their input.
    pub(crate) dropout: bool,
    /// Whether what trains is kept as it was at the start, as a reference.
    pub(crate) keeps_start: bool,
    /// Micro-batches that this process adds up in a step.
    pub(crate) micro_batches: usize,
    /// The processes that share out a step.
    pub(crate) n_ranks: usize,
    pub(crate) base: Dtype,
    pub(crate) compute: Dtype,
    /// Whether products with packed matrices are of bfloat16.
    pub(crate) rounds: bool,
    pub(crate) recompute: Recompute,
    /// Whether the learning rate is looked for before the first step.
    pub(crate) finds_rate: bool,
    /// Micro-batches whose gradient the adapter starts along.
    pub(crate) gradient_batches: usize,
    /// Whether the device has memory of its own, and no kernels of ours.
    pub(crate) accelerator: bool,
    pub(crate) rows: usize,
    pub(crate) seq: usize,
    /// Trained positions of the largest batch.
    pub(crate) targets: usize,
    /// Bytes of samples held in memory.
    pub(crate) samples: u64,
    /// Bytes of the tokenizer's file.
    pub(crate) tokenizer: u64,
}

impl Workload {
    /// Bytes of each value that trains, with its gradient and two moments, and of
    /// what an update needs.
    fn of_what_trains(&self) -> u64 {
        // The partial sums of gradients that wait for their neighbours: of 2 and 3 micro-batches one, of 4
        // to 7 two.
        let mut each = 16 + 4 * u64::from(self.micro_batches.max(1).ilog2());
        if self.keeps_start {
            each += 4;
        }
        if self.finds_rate {
            // The start and its first gradients, while another rate is tried.
            each += 8;
        }
        each * self.counts.trained as u64 + UPDATE * self.counts.largest_trained as u64 * 4
    }
}

/// What of a base stays packed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackedShare {
    /// Values.
    pub(crate) elements: usize,
    /// Bytes that they take, mapped from the file or in memory.
    pub(crate) bytes: u64,
    /// Bytes that they take on a device of its own memory.
    pub(crate) placed: u64,
    /// Columns of the widest matrix, inputs or outputs.
    pub(crate) widest: usize,
    /// Whether the vocabulary projection is one of them.
    pub(crate) head: bool,
    /// Linear layers within the blocks, and those of them that are packed.
    pub(crate) linear: usize,
    pub(crate) packed_linear: usize,
}

impl PackedShare {
    /// What to tell where layers that were to be packed stay dense.
    pub(crate) fn left_dense(&self) -> Option<String> {
        let dense = self.linear - self.packed_linear;
        (dense > 0).then(|| {
            format!(
                "{dense} of {} linear layers stay dense, as their rows do not divide into the format's blocks, or \
                 they train whole",
                self.linear
            )
        })
    }
}

fn bytes(dtype: Dtype) -> u64 {
    dtype.size() as u64
}

/// Values of a packed matrix that a thread unpacks at a time, if that is between 64 and 512 rows.
const PANEL: u64 = 1 << 22;
/// Bytes of a matrix that a thread has in bfloat16 at a time.
const LAID_OUT: u64 = 1 << 20;
/// Values of a panel in portable code.
const PLACED_PANEL: u64 = 1 << 23;
/// The program with its threads, as measured on a model of no size
/// (BENCHMARKS.md, "Memory").
const PROCESS: u64 = 22_000_000;
/// MPI's libraries with their buffers: what Open MPI 4.1 added on one machine.
const MPI: u64 = 74_000_000;
/// A tokenizer in memory, in sizes of its file; measured on one of 49,152 tokens.
const TOKENIZER: u64 = 8;
/// Tensors of the largest trained one's size that an update makes besides: new
/// moments, corrected ones, the change, the new value.
const UPDATE: u64 = 8;

/// Bytes that a token's way through its experts keeps: for each of them the
/// token, gate, up and their product, and the output before and after its weight
/// in f32; and the probabilities of all, which softmax, choice and scaling keep.
fn of_experts(experts: &Experts, width: u64, element: u64) -> u64 {
    let [count, per_token, inner] =
        [experts.count, experts.per_token, experts.intermediate_size].map(|n| n as u64);
    per_token * ((width + 3 * inner) * element + 2 * width * 4) + 3 * count * 4
}

/// Values of a token that a block keeps, but for the feed-forward network: each
/// norm keeps its input, each projection its input, attention its inputs, its
/// output and a number per head, the gate its two inputs.
fn kept_around_mlp(config: &ModelConfig, accelerator: bool) -> u64 {
    let n = |x: usize| x as u64;
    let d = n(config.hidden_size);
    let q = n(config.num_attention_heads * config.head_dim);
    let kv = n(config.num_key_value_heads * config.head_dim);
    let mut kept = 2 * d + 2 * d + q + 2 * kv + q;
    if config.qk_norm != QkNorm::None {
        kept += q + kv;
    }
    if config.norm_order == NormOrder::Around {
        kept += 2 * d;
    }
    if config.fused {
        // Queries, keys and values as they come, and apart from each other.
        kept += q + 2 * kv;
    }
    if accelerator {
        // Attention's output as it is computed, and as it is projected.
        kept += q;
    }
    kept
}

/// Whether `silu(gate)·up` is not kept: an adapted layer after it makes it again
/// (`olora_operations::project_gated`), and one that stays as it is needs none; one that trains whole
/// keeps it.
fn makes_gated_again(config: &ModelConfig, load: &Workload) -> bool {
    load.counts.adapted_layers > 0
        && config.gated
        && config.activation == Activation::Silu
        && !(load.dropout || load.dora || load.trains_whole)
}

/// What exchanging with other processes takes on the host: this one's sums, the
/// others' of the slice that it adds, and all together again.
fn exchanged(load: &Workload) -> u64 {
    if load.n_ranks > 1 {
        MPI + 3 * 4 * load.counts.trained as u64
    } else {
        0
    }
}

/// What unpacking takes: a panel for each thread; portable code has the integers and floats of one.
fn panels(config: &ModelConfig, load: &Workload) -> u64 {
    let n = |x: usize| x as u64;
    let tokens = n(load.rows) * n(load.seq);
    let (d, inner) = (n(config.hidden_size), n(config.intermediate_size));
    let widest = n(load.packed.widest);
    if load.packed.elements == 0 {
        0
    } else if load.accelerator {
        (widest * d).min(PLACED_PANEL) * 16
    } else if load.rounds {
        // What is multiplied, rounded, and a panel for each thread.
        2 * tokens * inner.max(d) + LAID_OUT * n(rayon::current_num_threads())
    } else {
        PANEL.clamp(64 * widest, 512 * widest) * 4 * n(rayon::current_num_threads())
    }
}

/// What a start along the gradient holds, but for the workspace: each block's input for all
/// micro-batches, one block's graph, and the gradients of its weights, of one at a time if there is
/// one micro-batch. `of_block` is what a block keeps of a token.
fn started(config: &ModelConfig, load: &Workload, of_block: u64, element: u64) -> u64 {
    let n = |x: usize| x as u64;
    let tokens = n(load.rows) * n(load.seq);
    let (d, inner) = (n(config.hidden_size), n(config.intermediate_size));
    let q = n(config.num_attention_heads * config.head_dim);
    let kv = n(config.num_key_value_heads * config.head_dim);
    let of_mlp = if config.gated { 3 } else { 2 };
    let weights = if load.gradient_batches > 1 {
        2 * d * q + 2 * d * kv + of_mlp * d * inner
    } else {
        d * inner.max(d)
    };
    let head = if load.counts.adapted_output {
        n(config.vocab_size) * d
    } else {
        0
    };
    let layers = n(config.num_hidden_layers);
    let inputs = n(load.gradient_batches) * tokens * (layers + 1) * d * element;
    inputs + tokens * of_block + 4 * weights.max(head)
}

impl MemoryEstimate {
    pub(crate) fn new(config: &ModelConfig, load: &Workload, objective: &dyn Objective) -> Self {
        let counts = load.counts;
        let n = |x: usize| x as u64;
        let element = bytes(load.compute);
        let tokens = n(load.rows) * n(load.seq);
        let d = n(config.hidden_size);
        let inner = n(config.intermediate_size);
        let q = n(config.num_attention_heads * config.head_dim);
        let kv = n(config.num_key_value_heads * config.head_dim);
        let layers = n(config.num_hidden_layers);
        let adapted = counts.adapted_layers > 0;

        let made_again = makes_gated_again(config, load);
        let of_mlp = if config.gated && !made_again {
            3 * inner
        } else {
            2 * inner
        };
        let mut kept = kept_around_mlp(config, load.accelerator);
        // Adapters keep x·A; with dropout, each its own input and what was dropped of it.
        let mut down = 0;
        if adapted {
            down += 7 * n(counts.rank) * 4;
            if load.dropout {
                down += 8 * (5 * d + q + inner);
            }
        }
        if adapted && load.dora {
            // Before and after its magnitude.
            kept += 2 * (q + 2 * kv + 2 * d + 2 * inner);
        }
        // Compositions of Burn's operations keep what each of those does, in f32.
        let mut composed = 0;
        if config.norm != NormKind::Rms {
            composed += 2 * d * (4 - element);
        }
        if config.activation == Activation::GeluTanh {
            composed += 4 * inner * 4;
        }
        let per_token = kept * element + composed + down + n(config.num_attention_heads) * 4;
        let dense = per_token + of_mlp * element;
        let (mixed_layers, mixed) = match &config.experts {
            None => (0, 0),
            Some(experts) => {
                let mixed = experts.layers.iter().filter(|mixed| **mixed).count();
                (n(mixed), per_token + of_experts(experts, d, element))
            }
        };
        let of_block = dense.max(mixed);
        let activations = match load.recompute {
            Recompute::None => tokens * ((layers - mixed_layers) * dense + mixed_layers * mixed),
            Recompute::Blocks => tokens * (layers * d * element + of_block),
        } + 2 * tokens * d * element;

        // Backward of the feed-forward network: three gradients of its width and two of the
        // stream's. Portable code works in f32 and keeps scores of some queries.
        let in_f32 = if load.accelerator { 3 * inner * 4 } else { 0 };
        let scores = if load.accelerator {
            let all = n(load.rows) * n(config.num_attention_heads) * n(load.seq) * n(load.seq) * 4;
            3 * all.min(64 << 20)
        } else {
            0
        };
        // Gradients of gate and up are each put into one of both, and added.
        let of_parts = if config.fused { 4 * inner } else { 0 };
        let workspace = tokens * ((3 * inner + of_parts + 2 * d) * element + in_f32) + scores;

        let head = HeadShape {
            targets: load.targets,
            width: config.hidden_size,
            vocab: config.vocab_size,
            element,
            is_adapted: counts.adapted_output,
            is_packed: load.packed.head,
            accelerator: load.accelerator,
        };
        let logits = objective.head_bytes(&head);
        let output_gradient = if counts.output_trains {
            n(config.vocab_size) * d * 4
        } else {
            0
        };
        let cast_copy = if load.compute == load.base {
            0
        } else {
            n(counts.params.saturating_sub(load.packed.elements)) * element
        };
        let frozen = counts.params.saturating_sub(counts.trained);
        let dense = frozen.saturating_sub(load.packed.elements);
        let panels = panels(config, load);
        let packed = if load.accelerator {
            load.packed.placed
        } else {
            load.packed.bytes
        };
        // Layers whose gradient is looked at keep all that goes into them.
        let watched = of_block + if made_again { inner * element } else { 0 };
        let start = started(config, load, watched, element) + workspace.max(logits);
        Self {
            start: if load.gradient_batches == 0 { 0 } else { start },
            weights: cast_copy + n(dense) * bytes(load.base) + packed + n(counts.anchor) * 4,
            trained: load.of_what_trains(),
            activations,
            workspace: workspace + panels,
            logits: logits + output_gradient,
            process: if load.accelerator {
                0
            } else {
                PROCESS + TOKENIZER * load.tokenizer + load.samples + exchanged(load)
            },
        }
    }

    /// The peak. The workspace and the logits are not there at the same time.
    pub fn total(&self) -> u64 {
        let training = self.trained + self.activations + self.workspace.max(self.logits);
        self.weights + training.max(self.start) + self.process
    }
}

impl std::fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            weights,
            trained,
            activations,
            workspace,
            logits,
            process,
            start,
        } = *self;
        write!(
            f,
            "{} (base {}, trained and its optimiser {}, activations {}, at work {}, or logits {}",
            size(self.total()),
            size(weights),
            size(trained),
            size(activations),
            size(workspace),
            size(logits),
        )?;
        if process > 0 {
            write!(f, ", program and data {}", size(process))?;
        }
        if start > 0 {
            write!(f, ", before the first step {} for the start", size(start))?;
        }
        f.write_str(")")
    }
}
