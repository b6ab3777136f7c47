//! A run of several processes: who writes, and whether all are of one mind.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use olora_adapter::{Parameter, params};
use olora_files::Fnv1a;
use olora_training::{Exchange, ExchangeError, Local, TrainError, share};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    Recipe, RunError,
    checkpoint::{self, Whole},
    claim::Next,
    recipe::changes,
    run_directory::RunDirectory,
    trainee::Trainee,
};

/// The processes of a run, each with a device of its own. By default there is
/// one.
///
/// All of them prepare the same run and make the same updates; the first alone
/// claims the run directory and writes to it.
#[derive(Clone, Debug)]
pub struct Ranks(pub Arc<dyn Exchange>);

impl Default for Ranks {
    fn default() -> Self {
        Self(Arc::new(Local))
    }
}

/// What all ranks of a run must have in common before the weights are read.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    /// Of the program's file.
    binary: u64,
    /// Resolved, as it is written to the run directory.
    recipe: String,
    /// Names the samples, the base, and the adapter that the run starts from.
    fingerprint: u64,
}

/// What the first rank says of how the run goes on.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Going {
    /// The steps of a run that is complete, which nobody goes on with.
    complete: Option<usize>,
    /// The checkpoint that it goes on from.
    from: Option<PathBuf>,
    /// Its `state.json`.
    state: Vec<u8>,
    /// Steps in all.
    total: usize,
    /// The rank of each adapted layer, as an earlier session found it.
    layer_ranks: BTreeMap<String, usize>,
}

/// How a rank's run begins or goes on, as the first rank has decided.
pub(crate) struct Start {
    pub(crate) next: Next,
    /// The rank of each adapted layer, if the run goes on.
    pub(crate) layer_ranks: Option<BTreeMap<String, usize>>,
    /// Where the first rank has the checkpoint that the run goes on from.
    pub(crate) checkpoint: Option<(usize, PathBuf)>,
    /// Files that came from the first rank. Burn reads them when it needs them, so
    /// they are kept while the run lasts.
    pub(crate) received: Option<TempDir>,
}

impl Ranks {
    pub(crate) fn exchange(&self) -> &dyn Exchange {
        &*self.0
    }

    pub(crate) fn n(&self) -> usize {
        self.0.n_ranks()
    }

    /// Whether this process is the one that writes.
    pub(crate) fn leads(&self) -> bool {
        self.0.rank() == 0
    }

    /// The places of this rank's micro-batches in a step.
    pub(crate) fn block(&self, recipe: &Recipe) -> Result<std::ops::Range<usize>, RunError> {
        let accumulation = recipe.training.accumulation;
        share(accumulation, self.0.rank(), self.n()).map_err(|error| RunError::Recipe {
            recipe: format!("{} ranks", self.n()),
            reason: error.to_string(),
        })
    }

    /// Refuses ranks that would not make the same run.
    pub(crate) fn introduce(&self, recipe: &Recipe, fingerprint: u64) -> Result<(), RunError> {
        if self.n() == 1 {
            return Ok(());
        }
        let own = Introduction {
            binary: hash_of_binary(),
            recipe: recipe.to_toml()?,
            fingerprint,
        };
        let all = self.gather(&own)?;
        for (rank, other) in all.iter().enumerate().skip(1) {
            let first = &all[0];
            let what = if other.binary != first.binary {
                "is another build of olora than".to_owned()
            } else if other.recipe != first.recipe {
                let keys = changes(&first.recipe, &other.recipe).into_iter();
                let keys = keys.map(|change| {
                    format!(
                        "{}: {} in the place of {}",
                        change.key, change.now, change.before
                    )
                });
                format!(
                    "has another recipe ({}) than",
                    keys.collect::<Vec<_>>().join("; ")
                )
            } else if other.fingerprint != first.fingerprint {
                "found other samples or other base weights than".to_owned()
            } else {
                continue;
            };
            return Err(self.differs(rank, &what));
        }
        Ok(())
    }

    /// Tells the other ranks, which wait to hear how the run goes on, that it is
    /// complete.
    pub(crate) fn tell_complete(&self, steps: usize) -> Result<(), RunError> {
        if self.n() > 1 {
            self.gather(&Going {
                complete: Some(steps),
                ..Going::default()
            })?;
        }
        Ok(())
    }

    /// Has all ranks go on as the first has decided: from the same checkpoint,
    /// which those that do not see it are sent. `decided` is the first rank's.
    pub(crate) fn start(
        &self,
        directory: &RunDirectory,
        decided: Option<Next>,
    ) -> Result<Start, RunError> {
        let mine = decided.map(|next| Start::of(next, directory)).transpose()?;
        if self.n() == 1 {
            return mine.ok_or_else(|| RunError::burn(&"the first rank has decided nothing"));
        }
        let all = self.gather(
            &mine
                .as_ref()
                .map(Going::of)
                .transpose()?
                .unwrap_or_default(),
        )?;
        if let Some(steps) = all.first().and_then(|first| first.complete) {
            return Err(RunError::Complete {
                directory: directory.path().to_owned(),
                steps,
            });
        }
        let Some((first, from)) = all
            .first()
            .and_then(|first| Some((first, first.from.clone()?)))
        else {
            return Ok(mine.unwrap_or_else(Start::begin));
        };
        let sees = mine.is_some()
            || matches!(fs::read(from.join(checkpoint::STATE)), Ok(state) if state == first.state);
        let seen = self
            .exchange()
            .gather(vec![u8::from(sees)])
            .map_err(TrainError::from)?;
        let sent = if seen.iter().all(|seen| seen == &[1]) {
            None
        } else {
            let files = match &mine {
                Some(_) => packed(&from)?,
                None => Vec::new(),
            };
            let mut all = self.exchange().gather(files).map_err(TrainError::from)?;
            (!sees && !all.is_empty()).then(|| all.swap_remove(0))
        };
        if let Some(mine) = mine {
            return Ok(mine);
        }
        let received = sent.map(|bytes| unpacked(&bytes)).transpose()?;
        let path = match &received {
            Some(directory) => directory.path().to_owned(),
            None => from.clone(),
        };
        let state = checkpoint::examined(&path)?.map_err(|reason| RunError::Checkpoint {
            path: from.clone(),
            reason,
        })?;
        Ok(Start {
            checkpoint: Some((state.step, from)),
            next: Next::GoOn {
                from: Box::new(Whole { path, state }),
                total: first.total,
                changed: false,
            },
            layer_ranks: Some(first.layer_ranks.clone()),
            received,
        })
    }

    /// Refuses to go on if the ranks do not hold the same values in what trains
    /// and in what it started from. `when` is a part of a sentence.
    pub(crate) fn agree(&self, trainee: &Trainee, when: &str) -> Result<(), RunError> {
        if self.n() == 1 {
            return Ok(());
        }
        let mut hash = Words::default();
        let kept = |param: &&Parameter| param.trains() || param.role().is_adapter();
        for param in params(trainee).iter().filter(kept) {
            hash.add(param.data()?.as_bytes());
        }
        let own = hash.value().to_le_bytes().to_vec();
        let all = self.exchange().gather(own).map_err(TrainError::from)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(self.differs(
                rank,
                &format!(
                    "holds other values {when}, though it computed the same. Have all ranks the same kind of \
                     processor and device? It is not in step with"
                ),
            )),
        }
    }

    fn gather<T: Serialize + for<'de> Deserialize<'de>>(
        &self,
        own: &T,
    ) -> Result<Vec<T>, RunError> {
        let bytes = serde_json::to_vec(own).map_err(|error| RunError::burn(&error))?;
        let all = self.exchange().gather(bytes).map_err(TrainError::from)?;
        let all = all.iter().enumerate().map(|(rank, bytes)| {
            serde_json::from_slice(bytes)
                .map_err(|_| self.differs(rank, "is another build of olora than"))
        });
        all.collect()
    }

    fn differs(&self, rank: usize, what: &str) -> RunError {
        let exchange = self.exchange();
        let (other, first) = (exchange.name(rank), exchange.name(0));
        TrainError::from(ExchangeError::Differ(format!("{other} {what} {first}"))).into()
    }
}

impl Start {
    fn begin() -> Self {
        Self {
            next: Next::Begin,
            layer_ranks: None,
            checkpoint: None,
            received: None,
        }
    }

    /// The first rank's, in its run directory.
    fn of(next: Next, directory: &RunDirectory) -> Result<Self, RunError> {
        let goes_on = matches!(next, Next::GoOn { .. });
        Ok(Self {
            next,
            layer_ranks: goes_on.then(|| directory.ranks()).transpose()?,
            checkpoint: directory.newest_checkpoint()?,
            received: None,
        })
    }
}

impl Going {
    fn of(start: &Start) -> Result<Self, RunError> {
        let Next::GoOn { from, total, .. } = &start.next else {
            return Ok(Self::default());
        };
        let state = from.path.join(checkpoint::STATE);
        Ok(Self {
            complete: None,
            from: Some(from.path.clone()),
            state: fs::read(&state).map_err(|source| RunError::io("reading", &state, source))?,
            total: *total,
            layer_ranks: start.layer_ranks.clone().unwrap_or_default(),
        })
    }
}

/// A checkpoint's files, each after its length.
fn packed(from: &Path) -> Result<Vec<u8>, RunError> {
    let mut all = Vec::new();
    for name in checkpoint::FILES {
        let path = from.join(name);
        let bytes = fs::read(&path).map_err(|source| RunError::io("reading", &path, source))?;
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
    }
    Ok(all)
}

/// The same files in a temporary directory.
fn unpacked(bytes: &[u8]) -> Result<TempDir, RunError> {
    let temporary = std::env::temp_dir();
    let directory =
        TempDir::new().map_err(|source| RunError::io("writing to", &temporary, source))?;
    let mut rest = bytes;
    for name in checkpoint::FILES {
        let taken = rest.split_at_checked(8).and_then(|(length, rest)| {
            let length = u64::from_le_bytes(length.try_into().ok()?);
            rest.split_at_checked(usize::try_from(length).ok()?)
        });
        let Some((file, after)) = taken else {
            return Err(RunError::mismatch(
                "the checkpoint that the first rank sent is cut short",
            ));
        };
        rest = after;
        let path = directory.path().join(name);
        fs::write(&path, file).map_err(|source| RunError::io("writing", &path, source))?;
    }
    Ok(directory)
}

/// Names the program's file; its version, where that cannot be read.
fn hash_of_binary() -> u64 {
    let file = std::env::current_exe().and_then(fs::read);
    let mut hash = Words::default();
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    hash.add(&file.unwrap_or_default());
    hash.value()
}

/// As FNV-1a, over words of eight bytes: gigabytes in seconds. Never stored.
struct Words(u64);

impl Default for Words {
    fn default() -> Self {
        Self(Fnv1a::default().value())
    }
}

impl Words {
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let rest = rest.iter().map(|byte| u64::from(*byte));
        for word in words
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .chain(rest)
        {
            let mixed = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3);
            // The multiplication carries nothing downwards.
            self.0 = mixed ^ (mixed >> 32);
        }
    }

    fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_arrives_as_it_was_sent_and_half_of_one_is_refused() {
        let from = TempDir::new().unwrap();
        for (i, name) in checkpoint::FILES.iter().enumerate() {
            fs::write(from.path().join(name), vec![7; 3 * i]).unwrap();
        }
        let sent = packed(from.path()).unwrap();
        let there = unpacked(&sent).unwrap();
        for name in checkpoint::FILES {
            let [before, after] = [&from, &there].map(|at| fs::read(at.path().join(name)).unwrap());
            assert_eq!(before, after, "{name}");
        }
        let error = unpacked(&sent[..sent.len() - 1]).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
    }

    #[test]
    fn every_byte_counts_in_a_hash() {
        let of = |bytes: &[u8]| {
            let mut hash = Words::default();
            hash.add(bytes);
            hash.value()
        };
        let bytes: Vec<u8> = (0..21).collect();
        for i in 0..bytes.len() {
            let mut other = bytes.clone();
            other[i] ^= 0x80;
            assert_ne!(of(&bytes), of(&other), "{i}");
        }
    }
}
