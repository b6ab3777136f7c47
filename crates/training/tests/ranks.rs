//! Steps of several ranks, each a thread: the same as those of one, bit for bit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    ops::Range,
    sync::{Arc, Barrier, Mutex},
    thread,
};

use burn::{
    module::{Initializer, Module},
    nn::{Linear, LinearConfig},
    optim::{GradientsParams, SgdConfig},
    tensor::{Device, Tensor, TensorData},
};
use olora_training::{
    Backward, Exchange, ExchangeError, Learns, Local, Optimized, TrainError, step, step_together,
    sum_over_ranks,
};

/// What a rank hands over, and waits for the others.
#[derive(Debug)]
struct Table {
    barrier: Barrier,
    bytes: Mutex<Vec<Vec<u8>>>,
    values: Mutex<Vec<Vec<Vec<f32>>>>,
}

/// A rank that is a thread.
#[derive(Clone, Debug)]
struct Seat {
    rank: usize,
    n: usize,
    table: Arc<Table>,
}

fn seats(n: usize) -> Vec<Seat> {
    let table = Arc::new(Table {
        barrier: Barrier::new(n),
        bytes: Mutex::new(vec![Vec::new(); n]),
        values: Mutex::new(vec![Vec::new(); n]),
    });
    let seat = |rank| Seat {
        rank,
        n,
        table: Arc::clone(&table),
    };
    (0..n).map(seat).collect()
}

impl Exchange for Seat {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.n
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.table.bytes.lock().unwrap()[self.rank] = bytes;
        self.table.barrier.wait();
        let all = self.table.bytes.lock().unwrap().clone();
        self.table.barrier.wait();
        Ok(all)
    }

    fn trade(
        &self,
        values: &Arc<Vec<f32>>,
        to: &[Range<usize>],
        lengths: &[usize],
    ) -> Result<Vec<Vec<f32>>, ExchangeError> {
        let slices = to.iter().map(|range| values[range.clone()].to_vec());
        self.table.values.lock().unwrap()[self.rank] = slices.collect();
        self.table.barrier.wait();
        let all = self.table.values.lock().unwrap();
        let received = (0..self.n).map(|sender| {
            if sender == self.rank {
                return Vec::new();
            }
            let received = all[sender][self.rank].clone();
            assert_eq!(received.len(), lengths[sender]);
            received
        });
        let received = received.collect();
        drop(all);
        self.table.barrier.wait();
        Ok(received)
    }
}

/// The same on each rank.
fn on_ranks<T: Send>(n: usize, run: impl Fn(&Seat) -> T + Sync) -> Vec<T> {
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = seats(n)
            .into_iter()
            .map(|seat| scope.spawn(move || run(&seat)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

type Learner = Optimized<Vec<Linear>>;

/// Two layers, of which only the first micro-batches reach the second.
fn learner() -> Learner {
    let device = Device::flex();
    // Nothing random: ranks that are threads have one generator among them.
    let initializer = Initializer::Constant { value: 0.3 };
    let layer = || {
        LinearConfig::new(5, 5)
            .with_initializer(initializer.clone())
            .init(&device)
    };
    let layers: Vec<Linear> = Module::train(vec![layer(), layer()]);
    Optimized::new(layers, SgdConfig::new().init(), 0.1)
}

/// Micro-batch `i` of numbers that no order of adding rounds alike.
#[expect(clippy::unnecessary_wraps, reason = "as a step takes it")]
fn backward(learner: &Learner, i: usize, n: usize) -> Result<Option<Backward>, TrainError> {
    if i >= n {
        return Ok(None);
    }
    let device = learner.module[0].weight.device();
    let rows = 2 + i % 3;
    let value = |k: usize| ((k * 37 + i * 101) % 97) as f32 * 1.37e-2 + (i as f32).exp2() * 1e-3;
    let x: Vec<f32> = (0..rows * 5).map(value).collect();
    let mut x = Tensor::<2>::from_data(TensorData::new(x, [rows, 5]), &device);
    for layer in learner.module.iter().take(if i < 2 { 2 } else { 1 }) {
        x = layer.forward(x);
    }
    let loss = x.square().sum();
    Ok(Some(Backward {
        loss: loss.clone().inner(),
        measures: vec![("half", loss.clone().inner() * 0.5)],
        count: 0.1 + i as f64,
        grads: GradientsParams::from_grads(loss.backward(), &learner.module),
    }))
}

/// Every bit of what a few steps leave.
fn trained(exchange: &dyn Exchange, accumulation: usize, n: usize) -> (Vec<u32>, Vec<u32>) {
    let mut learner = learner();
    let mut told = Vec::new();
    for _ in 0..2 {
        let mut work = |learner: &Learner, i: usize| backward(learner, i, n);
        let result = step_together(&mut learner, exchange, accumulation, 1.0, &mut work).unwrap();
        assert_eq!(result.n_micro_batches, n.min(accumulation));
        assert_eq!(result.ranks.len(), exchange.n_ranks());
        told.push(result.loss.into_scalar::<f32>().to_bits());
        told.push(result.norm.into_scalar::<f32>().to_bits());
        told.push((result.count as f32).to_bits());
    }
    let mut bits = Vec::new();
    for layer in learner.module() {
        for values in [
            layer.weight.val().into_data(),
            layer.bias.unwrap().val().into_data(),
        ] {
            bits.extend(
                values
                    .try_to_vec::<f32>()
                    .unwrap()
                    .iter()
                    .map(|value| value.to_bits()),
            );
        }
    }
    (bits, told)
}

#[test]
fn any_number_of_ranks_makes_the_steps_of_one() {
    for (accumulation, n) in [(4, 4), (8, 8), (12, 12), (8, 5), (8, 1), (6, 4)] {
        let alone = trained(&Local, accumulation, n);
        for n_ranks in (2..=accumulation).filter(|r| accumulation % r == 0) {
            for found in on_ranks(n_ranks, |seat| trained(seat, accumulation, n)) {
                assert_eq!(found, alone, "{accumulation} {n} {n_ranks}");
            }
        }
    }
}

/// The order is not that from left to right, which the test above could not tell.
#[test]
fn neighbours_are_added_first() {
    let values = [1e8_f32, 1.0, -1e8, 1.0];
    let expected = (values[0] + values[1]) + (values[2] + values[3]);
    assert_ne!(expected, values.iter().sum::<f32>());
    let sums = on_ranks(4, |seat| {
        sum_over_ranks(seat, vec![values[seat.rank], 1.0]).unwrap()
    });
    assert!(sums.iter().all(|sum| *sum == [expected, 4.0]), "{sums:?}");
}

#[test]
fn ranks_that_do_not_divide_or_do_not_train_the_same_are_refused() {
    let refused = on_ranks(2, |seat| {
        let mut learner = learner();
        let mut work = |learner: &Learner, i: usize| backward(learner, i, 3);
        step_together(&mut learner, seat, 3, 1.0, &mut work)
            .unwrap_err()
            .to_string()
    });
    assert!(refused[0].contains("1, 3"), "{}", refused[0]);
    let refused = on_ranks(2, |seat| {
        let mut learner = learner();
        if seat.rank() == 1 {
            learner.module.pop();
        }
        let mut work = |learner: &Learner, i: usize| backward(learner, i + 2, 9);
        step_together(&mut learner, seat, 2, 1.0, &mut work)
            .unwrap_err()
            .to_string()
    });
    assert!(
        refused[0].contains("rank 1 trains other parameters"),
        "{}",
        refused[0]
    );
}

#[test]
fn a_loss_that_is_no_number_is_found_by_the_rank_that_has_it() {
    let mut learner = learner();
    let seat = seats(2).swap_remove(0);
    let mut work = |learner: &Learner, i: usize| {
        let pass = backward(learner, i, 2)?;
        Ok::<_, TrainError>(pass.map(|pass| Backward {
            loss: pass.loss * f32::NAN,
            ..pass
        }))
    };
    let error = step_together(&mut learner, &seat, 2, 1.0, &mut work).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
}

#[test]
fn one_process_needs_no_exchange() {
    let (mut one, mut other) = (learner(), learner());
    let a = step(&mut one, 3, 0.0, |learner, i| backward(learner, i, 3)).unwrap();
    let mut work = |learner: &Learner, i: usize| backward(learner, i, 3);
    let b = step_together(&mut other, &Local, 3, 0.0, &mut work).unwrap();
    assert_eq!(a.loss.into_scalar::<f32>(), b.loss.into_scalar::<f32>());
    assert_eq!(a.measures.len(), 1);
}
