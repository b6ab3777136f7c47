//! A product of two 16 × 16 matrices on Vulkan through SPIR-V, which kills
//! Debian 12's software Vulkan (Mesa 22.3.6, llvmpipe): a segmentation fault in
//! its shader compiler, with the first matrix product and not before.
//!
//! ```text
//! cargo run --release -p olora-tools --features vulkan --bin vulkan_matmul
//! ```
//!
//! For a report upstream: Burn 0.22.1, CubeCL 0.11.3. Other operations work
//! there, and portable shaders (`wgpu` in a build without `vulkan`) do
//! everything. `olora doctor --device vulkan` shows it as a failed operation,
//! since each examination is a process of its own.

#![allow(clippy::print_stdout, reason = "an example prints its results")]

use burn::tensor::Tensor;
use olora_devices::{KernelOptions, Opened};

fn main() -> anyhow::Result<()> {
    // SAFETY: nothing comes before it, so this thread is the only one.
    unsafe { olora_devices::set_environment() };
    // SPIR-V if `vulkan` is compiled in, else portable shaders.
    let name = if cfg!(feature = "vulkan") {
        "vulkan"
    } else {
        "wgpu"
    };
    let kernels = KernelOptions::default();
    olora_devices::prepare(kernels)?;
    let Opened { device, details } = olora_devices::open(name, kernels)?;
    println!("{}, {}", details.name, details.runtime);
    let one = Tensor::<1>::from_floats([1.0], &device);
    println!(
        "a sum: {:?}",
        one.add_scalar(1.0).try_into_data()?.try_to_vec::<f32>()?
    );
    let ones = Tensor::<2>::ones([16, 16], &device);
    let product = ones.clone().matmul(ones).slice([0..1, 0..1]);
    println!(
        "a product: {:?}",
        product.try_into_data()?.try_to_vec::<f32>()?
    );
    Ok(())
}
