//! An adapter on a network of one's own: attach, train, save, load, merge.

use burn::{
    module::Module,
    nn::{Linear, LinearConfig, Relu},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Distribution, Tensor},
};
use olora_adapter::{
    AdapterConfig, PeftAdapter, PeftForm, Project, attach, merge, save_peft, summary,
};

#[derive(Module, Debug)]
struct Network {
    up: Linear,
    relu: Relu,
    down: Linear,
}

impl Network {
    fn new(device: &Device) -> Self {
        Self {
            up: LinearConfig::new(8, 32).init(device),
            relu: Relu::new(),
            down: LinearConfig::new(32, 4).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.project(self.relu.forward(self.up.project(x)))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let config = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        ..AdapterConfig::default()
    };
    let base = Network::new(&device);
    let mut network = attach(base.clone(), &config, 42, &mut |_, _| {})?.train();
    println!("{}", summary(&network, &config)?);
    let mut optimizer = AdamWConfig::new().init();
    let x = Tensor::<2>::random([16, 8], Distribution::Default, &device.autodiff());
    for step in 0..5 {
        let loss = network.forward(x.clone()).square().mean();
        println!("step {step}: loss {}", loss.clone().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(1e-2, network, grads);
    }
    let directory = std::env::temp_dir().join("olora-outside");
    save_peft(&network, &config, PeftForm::Plain, None, "network", &directory)?;
    let again = merge(PeftAdapter::read(&directory)?.attach(base)?)?;
    let x = x.inner();
    let difference = again.forward(x.clone()) - network.valid().forward(x);
    println!("merged differs by {}", difference.abs().max().into_scalar::<f32>());
    Ok(())
}
