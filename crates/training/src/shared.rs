//! The sums of a step over all ranks.

use std::{ops::Range, sync::Arc, time::Instant};

use burn::{
    module::{Module, Param, ParamId},
    optim::GradientsParams,
    tensor::{DType, Device, Tensor, TensorData},
};
use olora_adapter::{Place, VisitParams, params, visit_params};
use olora_files::Fnv1a;

use crate::{
    Exchange, ExchangeError, TrainError,
    exchange::share,
    header::Header,
    order::{Node, Parts},
    step::{Part, RankStep, Sums, add_parts},
};

/// What a rank has of a step before the exchange.
pub(crate) struct Mine {
    pub(crate) parts: Parts<Part>,
    /// What each of its micro-batches is divided by.
    pub(crate) counts: Vec<f64>,
    pub(crate) tokens: u64,
    pub(crate) stop: bool,
    pub(crate) began: Instant,
}

/// What all ranks have together.
pub(crate) struct Ours {
    pub(crate) sums: Option<Sums>,
    pub(crate) counts: Vec<f64>,
    pub(crate) ranks: Vec<RankStep>,
    /// Seconds in which values were on their way.
    pub(crate) exchange_seconds: f64,
}

/// Adds what this rank has to what the others have, in the order of
/// [`order`](crate::order). One rank keeps everything on its device.
pub(crate) fn together<M: Module>(
    exchange: &dyn Exchange,
    accumulation: usize,
    module: &M,
    mine: Mine,
) -> Result<Ours, TrainError> {
    let n_ranks = exchange.n_ranks();
    if n_ranks == 1 {
        let sums = mine
            .parts
            .total(&mut |left, right| add_parts(module, left, right))?;
        return Ok(Ours {
            sums,
            counts: mine.counts,
            ranks: vec![RankStep {
                tokens: mine.tokens,
                seconds: mine.began.elapsed().as_secs_f64(),
                stop: mine.stop,
            }],
            exchange_seconds: 0.0,
        });
    }
    let layout = Layout::of(module);
    let device = layout.device.clone();
    let nodes = mine.parts.nodes();
    let (mut names, mut present) = (None::<Vec<&'static str>>, vec![false; layout.slots.len()]);
    let mut values = Vec::with_capacity(nodes.len());
    for part in mine.parts.into_values() {
        layout.note_present(&part.grads, &mut present, module);
        names = Some(part.measures.iter().map(|measure| measure.0).collect());
        values.push(layout.flat(module, part)?);
    }
    let header = Header {
        layout: layout.hash,
        seconds: mine.began.elapsed().as_secs_f64(),
        tokens: mine.tokens,
        stop: mine.stop,
        counts: mine.counts,
        names: names.clone().map(|names| names.join("\n")),
        present,
    };
    let headers = exchange.gather(header.to_bytes())?;
    let exchanging = Instant::now();
    let headers = headers.iter().enumerate().map(|(rank, bytes)| {
        Header::from_bytes(bytes).ok_or_else(|| {
            ExchangeError::Differ(format!(
                "{} sent what this rank does not understand: is it the same build of olora?",
                exchange.name(rank)
            ))
        })
    });
    let headers = headers.collect::<Result<Vec<_>, _>>()?;
    check(exchange, &headers, accumulation)?;
    // A rank without a micro-batch learns from the others what is measured.
    let n_measures = headers.iter().find_map(Header::n_measures);
    let length = layout.length + 1 + n_measures.unwrap_or(0);
    let shares = headers.iter().enumerate().map(|(rank, header)| {
        let block = share(accumulation, rank, n_ranks)?;
        Ok(nodes_of(block.start, header.counts.len()))
    });
    let shares = shares.collect::<Result<Vec<_>, ExchangeError>>()?;
    debug_assert_eq!(shares[exchange.rank()], nodes);
    let total = sum_in_order(exchange, &shares, values, length)?;

    let counts: Vec<f64> = headers
        .iter()
        .flat_map(|header| header.counts.clone())
        .collect();
    let mut present = vec![false; layout.slots.len()];
    for header in &headers {
        for (present, there) in present.iter_mut().zip(&header.present) {
            *present |= there;
        }
    }
    let sums = total.map(|total| layout.sums(module, total, &present, names, &device));
    let ranks = headers.iter().map(|header| RankStep {
        tokens: header.tokens,
        seconds: header.seconds,
        stop: header.stop,
    });
    Ok(Ours {
        sums,
        counts,
        ranks: ranks.collect(),
        exchange_seconds: exchanging.elapsed().as_secs_f64(),
    })
}

/// Refuses what cannot be added up: the same on every rank, as all see the same
/// headers.
fn check(
    exchange: &dyn Exchange,
    headers: &[Header],
    accumulation: usize,
) -> Result<(), ExchangeError> {
    let block = accumulation / headers.len().max(1);
    let mut ended = None;
    for (rank, header) in headers.iter().enumerate() {
        if header.layout != headers[0].layout {
            return Err(ExchangeError::Differ(format!(
                "{} trains other parameters than {}",
                exchange.name(rank),
                exchange.name(0)
            )));
        }
        let done = header.counts.len();
        if let Some(short) = ended.filter(|_| done > 0) {
            return Err(ExchangeError::Differ(format!(
                "{} was given micro-batches after {} had none left: is the data the same on all machines?",
                exchange.name(rank),
                exchange.name(short)
            )));
        }
        if done < block && ended.is_none() {
            ended = Some(rank);
        }
        let (names, first) = (&header.names, headers.iter().find_map(|h| h.names.as_ref()));
        if let (Some(names), Some(first)) = (names, first)
            && names != first
        {
            return Err(ExchangeError::Differ(format!(
                "the micro-batches of a step must be measured alike, but {} has {names:?} and another {first:?}",
                exchange.name(rank)
            )));
        }
    }
    Ok(())
}

/// The parts that `n` leaves from `start` on make.
fn nodes_of(start: usize, n: usize) -> Vec<Node> {
    let mut parts = Parts::new();
    for index in start..start + n {
        // Nothing can go wrong with nothing.
        let _ = parts.leaf(index, (), &mut |(), ()| {
            Ok::<_, std::convert::Infallible>(())
        });
    }
    parts.nodes()
}

/// The sum of what each rank has, on every rank, in the order of a step that has
/// a micro-batch for each: how sums of gradients are exchanged, by itself.
///
/// # Errors
///
/// When another rank has failed.
pub fn sum_over_ranks(
    exchange: &dyn Exchange,
    values: Vec<f32>,
) -> Result<Vec<f32>, ExchangeError> {
    let length = values.len();
    let nodes: Vec<_> = (0..exchange.n_ranks())
        .map(|rank| nodes_of(rank, 1))
        .collect();
    Ok(sum_in_order(exchange, &nodes, vec![values], length)?.unwrap_or_default())
}

/// The sum of all parts of all ranks, on every rank. Each adds a slice of the
/// values and hands it to all: as much traffic as a ring, and one order.
///
/// `nodes` are the parts of each rank, `own` the values of this one's, `length`
/// each. `None` if nobody has any.
fn sum_in_order(
    exchange: &dyn Exchange,
    nodes: &[Vec<Node>],
    own: Vec<Vec<f32>>,
    length: usize,
) -> Result<Option<Vec<f32>>, ExchangeError> {
    let (rank, n_ranks) = (exchange.rank(), exchange.n_ranks());
    if nodes.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    let slices: Vec<Range<usize>> = (0..n_ranks)
        .map(|r| r * length / n_ranks..(r + 1) * length / n_ranks)
        .collect();
    let mine = slices[rank].clone();
    let rounds = nodes.iter().map(Vec::len).max().unwrap_or(0);
    let mut of_ranks: Vec<Vec<Vec<f32>>> = vec![Vec::new(); n_ranks];
    let mut own = own.into_iter();
    for round in 0..rounds {
        let values = own.next();
        let to = match &values {
            Some(_) => slices.clone(),
            None => vec![0..0; n_ranks],
        };
        let lengths = nodes
            .iter()
            .map(|nodes| if nodes.len() > round { mine.len() } else { 0 });
        let lengths: Vec<usize> = lengths.collect();
        let values = Arc::new(values.unwrap_or_default());
        let received = exchange.trade(&values, &to, &lengths)?;
        for (sender, received) in received.into_iter().enumerate() {
            if nodes[sender].len() > round {
                of_ranks[sender].push(if sender == rank {
                    values[mine.clone()].to_vec()
                } else {
                    received
                });
            }
        }
    }
    let add = &mut |mut left: Vec<f32>, right: Vec<f32>| {
        for (left, right) in left.iter_mut().zip(&right) {
            *left += right;
        }
        Ok::<_, ExchangeError>(left)
    };
    let mut parts = Parts::new();
    for (nodes, values) in nodes.iter().zip(of_ranks) {
        for (node, values) in nodes.iter().zip(values) {
            parts.push(*node, values, add)?;
        }
    }
    let slice = Arc::new(parts.total(add)?.unwrap_or_default());
    let to = vec![0..slice.len(); n_ranks];
    let lengths: Vec<usize> = slices.iter().map(ExactSizeIterator::len).collect();
    let received = exchange.trade(&slice, &to, &lengths)?;
    let mut total = Vec::with_capacity(length);
    for (sender, received) in received.iter().enumerate() {
        total.extend_from_slice(if sender == rank { &slice } else { received });
    }
    Ok(Some(total))
}

/// How what trains lies in one row of values: the same on every rank, whether it
/// had a micro-batch or not. The loss and the measures come after it.
struct Layout {
    slots: Vec<(ParamId, usize)>,
    length: usize,
    /// Names paths and shapes.
    hash: u64,
    /// Without autodiff.
    device: Device,
}

impl Layout {
    fn of<M: Module>(module: &M) -> Self {
        let (mut slots, mut hash) = (Vec::new(), Fnv1a::default());
        let mut device = None;
        for param in params(module).iter().filter(|param| param.trains()) {
            let n = param.num_elements();
            slots.push((param.id(), n));
            hash.add(param.path().as_bytes());
            for size in param.shape() {
                hash.add(&(size as u64).to_le_bytes());
            }
            device.get_or_insert_with(|| param.flat().device());
        }
        let length = slots.iter().map(|(_, n)| n).sum();
        Self {
            slots,
            length,
            hash: hash.value(),
            device: device.unwrap_or_default(),
        }
    }

    /// Notes which parameters have a gradient: one that nothing went through has none.
    fn note_present<M: Module>(&self, grads: &GradientsParams, present: &mut [bool], module: &M) {
        struct Note<'a>(
            &'a GradientsParams,
            &'a [(ParamId, usize)],
            &'a mut [bool],
            usize,
        );
        impl VisitParams for Note<'_> {
            fn visit<const D: usize>(&mut self, _place: &Place, param: &Param<Tensor<D>>) {
                if self.1.get(self.3).is_some_and(|slot| slot.0 == param.id) {
                    self.2[self.3] |= self.0.get::<D>(param.id).is_some();
                    self.3 += 1;
                }
            }
        }
        visit_params(module, &mut Note(grads, &self.slots, present, 0));
    }

    /// A part's values on the host, in one reading.
    fn flat<M: Module>(&self, module: &M, part: Part) -> Result<Vec<f32>, TrainError> {
        struct Flatten<'a> {
            grads: GradientsParams,
            slots: std::slice::Iter<'a, (ParamId, usize)>,
            next: Option<&'a (ParamId, usize)>,
            flat: Vec<Tensor<1>>,
            device: &'a Device,
        }
        impl VisitParams for Flatten<'_> {
            fn visit<const D: usize>(&mut self, _place: &Place, param: &Param<Tensor<D>>) {
                let Some((_, n)) = self.next.filter(|slot| slot.0 == param.id) else {
                    return;
                };
                self.next = self.slots.next();
                self.flat.push(match self.grads.remove::<D>(param.id) {
                    Some(grad) => grad.cast(DType::F32).reshape([*n]),
                    // Adding a negative zero changes nothing, not even the sign of a zero.
                    None => Tensor::full([*n], -0.0_f32, (self.device, DType::F32)),
                });
            }
        }
        let mut slots = self.slots.iter();
        let mut flatten = Flatten {
            grads: part.grads,
            next: slots.next(),
            slots,
            flat: Vec::with_capacity(self.slots.len() + 1 + part.measures.len()),
            device: &self.device,
        };
        visit_params(module, &mut flatten);
        let mut all = flatten.flat;
        all.push(part.loss);
        all.extend(part.measures.into_iter().map(|(_, sum)| sum));
        let values = Tensor::cat(all, 0)
            .try_into_data()
            .map_err(|error| TrainError::device(&error))?
            .try_to_vec::<f32>()
            .map_err(|error| TrainError::device(&error))?;
        let loss = values.get(self.length).copied().unwrap_or(f32::NAN);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite {
                value: f64::from(loss),
                first: "in this rank's share of the step".to_owned(),
            });
        }
        Ok(values)
    }

    /// Back on the device. The names of the measures are this rank's, which are
    /// all ranks'; without any micro-batch here they stay unnamed and are left out.
    fn sums<M: Module>(
        &self,
        module: &M,
        total: Vec<f32>,
        present: &[bool],
        names: Option<Vec<&'static str>>,
        device: &Device,
    ) -> Sums {
        struct Register<'a> {
            slots: std::slice::Iter<'a, (ParamId, usize)>,
            next: Option<&'a (ParamId, usize)>,
            present: std::slice::Iter<'a, bool>,
            all: &'a Tensor<1>,
            at: usize,
            grads: GradientsParams,
        }
        impl VisitParams for Register<'_> {
            fn visit<const D: usize>(&mut self, _place: &Place, param: &Param<Tensor<D>>) {
                let Some((id, n)) = self.next.filter(|slot| slot.0 == param.id) else {
                    return;
                };
                self.next = self.slots.next();
                let at = self.at;
                self.at += n;
                if self.present.next() != Some(&true) {
                    return;
                }
                let base = param.base();
                let grad = self.all.clone().narrow(0, at, *n).reshape(base.shape());
                self.grads.register::<D>(*id, grad.cast(base.dtype()));
            }
        }
        let length = total.len();
        let all = Tensor::<1>::from_data(TensorData::new(total, [length]), (device, DType::F32));
        let mut slots = self.slots.iter();
        let mut register = Register {
            next: slots.next(),
            slots,
            present: present.iter(),
            all: &all,
            at: 0,
            grads: GradientsParams::new(),
        };
        visit_params(module, &mut register);
        let grads = register.grads;
        let one = |i: usize| all.clone().narrow(0, self.length + i, 1);
        let names = names.unwrap_or_default().into_iter().enumerate();
        Sums {
            loss: one(0),
            measures: names.map(|(i, name)| (name, one(1 + i))).collect(),
            grads,
        }
    }
}
