//! `olora serve`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, builder::TypedValueParser};
use olora_model::{Dtype, Packing};
use olora_runs::recipe::bounds::MAX_LENGTH;

use super::values::{QUANTIZE, bytes, dtype, whole};

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Checkpoint directory, GGUF file or hub name; may be left out if an adapter names its base
    #[arg(long, required_unless_present = "adapters")]
    pub(crate) model: Option<PathBuf>,
    /// What clients call the base [default: the last part of its path or name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// An adapter, PEFT's or mlx-lm's or a run, by the name that clients call it, if not by the
    /// last part of its path; may be repeated
    #[arg(long = "adapter", value_name = "[NAME=]PATH")]
    pub(crate) adapters: Vec<String>,
    /// A directory of adapters or runs, which clients may have loaded by name (POST /v1/adapters)
    #[arg(long, value_name = "DIR")]
    pub(crate) adapters_dir: Option<PathBuf>,
    #[arg(
        long,
        default_value = "127.0.0.1",
        value_name = "ADDRESS",
        help = "Address to listen on; any but this machine's own needs a key in OLORA_API_KEY"
    )]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 is any that is free
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    #[arg(
        long,
        value_name = "ORIGIN",
        help = "A site whose pages may ask, such as http://localhost:3000; may be repeated"
    )]
    pub(crate) allow_origin: Vec<String>,
    /// Texts that are continued together
    #[arg(long, default_value_t = 16, value_parser = count(1024))]
    pub(crate) max_batch: usize,
    /// Requests that may wait beside; others are told to try again later
    #[arg(long, default_value_t = 256, value_parser = count(1 << 20))]
    pub(crate) queue: usize,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 4096, value_parser = count(MAX_LENGTH))]
    pub(crate) max_tokens: usize,
    /// Positions of all caches together; texts that would need more wait
    #[arg(long, default_value_t = 65_536, value_parser = count(1 << 30))]
    pub(crate) cache_tokens: usize,
    /// Largest request, such as 4MiB
    #[arg(long, default_value = "1MiB", value_parser = bytes)]
    pub(crate) max_body: u64,
    /// Seconds that an answer may take, waiting included
    #[arg(long, default_value_t = 600, value_parser = count(86_400))]
    pub(crate) max_seconds: usize,
    /// Write requests and answers to stderr, with their texts
    #[arg(long)]
    pub(crate) log_prompts: bool,
    #[arg(long, value_name = "FORMAT", help = QUANTIZE)]
    pub(crate) quantize: Option<Packing>,
    /// Number format to hold the weights in; if not given, float32 on the CPU, and on a GPU
    /// bfloat16 for a half-precision checkpoint where it can
    #[arg(long, value_parser = dtype())]
    pub(crate) dtype: Option<Dtype>,
    /// Device: cpu, cuda, cuda:1, wgpu, vulkan, metal, rocm
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

fn count(most: usize) -> impl TypedValueParser<Value = usize> {
    whole(1, most, "at least one, and no more than can be counted on")
}
