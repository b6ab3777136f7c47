//! Which passes over the data a run's steps belong to.

/// The steps of a run, and the micro-batches that they take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epochs {
    /// Steps in all.
    pub(crate) total_steps: usize,
    /// Micro-batches in all: the last step may have fewer than the others.
    pub(crate) n_batches: usize,
    /// Micro-batches of one pass over the data.
    pub(crate) batches_per_epoch: usize,
    /// Micro-batches of a step.
    pub(crate) accumulation: usize,
}

impl Epochs {
    /// How many there are, one that is cut short counting as one.
    pub(crate) fn count(&self) -> usize {
        self.n_batches
            .div_ceil(self.batches_per_epoch.max(1))
            .max(1)
    }

    /// The epoch of a step, both from 1: the one that its last micro-batch is of.
    pub(crate) fn of(&self, step: usize) -> usize {
        let batches = step.saturating_mul(self.accumulation).min(self.n_batches);
        let epoch = batches.div_ceil(self.batches_per_epoch.max(1));
        epoch.clamp(1, self.count())
    }

    /// The most steps that an epoch has.
    pub(crate) fn steps_per_epoch(&self) -> usize {
        let whole = self.batches_per_epoch.div_ceil(self.accumulation.max(1));
        whole.min(self.total_steps).max(1)
    }

    /// The number of a step among those of its epoch, from 1.
    pub(crate) fn place(&self, step: usize) -> usize {
        let batches = (self.of(step) - 1).saturating_mul(self.batches_per_epoch);
        let before = batches / self.accumulation.max(1);
        // A last step of few micro-batches may be one too many.
        step.saturating_sub(before).min(self.steps_per_epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_place_in_an_epoch() {
        for (total_steps, n_batches, batches_per_epoch, accumulation, epochs) in [
            // Whole epochs, of steps that do not divide them.
            (32, 126, 126, 4, 1),
            (95, 378, 126, 4, 3),
            // Cut short, by steps.
            (10, 40, 126, 4, 1),
            (100, 100, 40, 1, 3),
            // Steps of more than an epoch.
            (5, 50, 4, 10, 13),
        ] {
            let run = Epochs {
                total_steps,
                n_batches,
                batches_per_epoch,
                accumulation,
            };
            assert_eq!(run.count(), epochs, "{run:?}");
            assert_eq!((run.of(0), run.place(0)), (1, 0), "{run:?}");
            let places: Vec<_> = (1..=total_steps)
                .map(|step| (run.of(step), run.place(step)))
                .collect();
            let all = run.count() * run.steps_per_epoch();
            // Burn's bars go by this number, and must not go back.
            let bar = |(epoch, place): (usize, usize)| (epoch - 1) * run.steps_per_epoch() + place;
            assert!(
                places.iter().all(|place| (1..=all).contains(&bar(*place))),
                "{run:?}"
            );
            assert!(places.is_sorted_by_key(|place| bar(*place)), "{run:?}");
            assert_eq!(places.last().map(|place| place.0), Some(epochs), "{run:?}");
        }
        let run = Epochs {
            total_steps: 100,
            n_batches: 100,
            batches_per_epoch: 40,
            accumulation: 1,
        };
        assert_eq!(
            [40, 41, 100].map(|step| (run.of(step), run.place(step))),
            [(1, 40), (2, 1), (3, 20)]
        );
    }
}
