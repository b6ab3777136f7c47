//! What a launcher says of the processes that it has started.

/// This process is one of several that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What started it, for people.
    pub launcher: &'static str,
    /// Which it is, from 0.
    pub rank: usize,
    /// How many there are; more than one.
    pub n_ranks: usize,
    /// Which it is of those on this machine, where the launcher says so.
    pub local_rank: Option<usize>,
}

/// Variables of a launcher that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// It is no number.
    #[error("the environment variable {name} is {found:?}, but must be a whole number")]
    NotANumber {
        /// The variable.
        name: &'static str,
        /// What it is.
        found: String,
    },
    /// A number that there is no room for.
    #[error(
        "the environment says that this is rank {rank} of {n_ranks} ({name}): ranks count from 0"
    )]
    OutOfRange {
        /// The variable of the rank.
        name: &'static str,
        /// The rank.
        rank: usize,
        /// How many there are.
        n_ranks: usize,
    },
}

/// What launchers call the number of processes, the process, and the process on
/// its machine. Slurm's number is that of a job step: a batch script that is no
/// step of its own is one process, whatever it asked for.
const LAUNCHERS: [(&str, [&str; 3]); 6] = [
    (
        "Open MPI's mpirun",
        [
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ],
    ),
    (
        "MVAPICH's launcher",
        [
            "MV2_COMM_WORLD_SIZE",
            "MV2_COMM_WORLD_RANK",
            "MV2_COMM_WORLD_LOCAL_RANK",
        ],
    ),
    (
        "Slurm's srun",
        ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"],
    ),
    ("PALS", ["PALS_SIZE", "PALS_RANKID", "PALS_LOCAL_RANKID"]),
    (
        "MPICH's mpirun",
        ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"],
    ),
    (
        "a launcher that sets WORLD_SIZE",
        ["WORLD_SIZE", "RANK", "LOCAL_RANK"],
    ),
];

impl Launch {
    /// Reads it from variables of the environment; `None` if this process is
    /// alone. `LOCAL_RANK`, if it is set, is believed before the launcher's own.
    ///
    /// # Errors
    ///
    /// When a variable is no number, or a rank is beyond the number of ranks.
    pub fn from_env(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, LaunchError> {
        let number = |name: &'static str| {
            let found = variable(name).filter(|found| !found.is_empty());
            found
                .map(|found| {
                    found
                        .trim()
                        .parse::<usize>()
                        .map_err(|_| LaunchError::NotANumber { name, found })
                })
                .transpose()
        };
        for (launcher, [of_size, of_rank, of_local]) in LAUNCHERS {
            let Some(n_ranks) = number(of_size)?.filter(|n| *n > 1) else {
                continue;
            };
            let rank = number(of_rank)?.unwrap_or(0);
            if rank >= n_ranks {
                return Err(LaunchError::OutOfRange {
                    name: of_rank,
                    rank,
                    n_ranks,
                });
            }
            let local_rank = match number("LOCAL_RANK")? {
                Some(local) => Some(local),
                None => number(of_local)?,
            };
            return Ok(Some(Self {
                launcher,
                rank,
                n_ranks,
                local_rank,
            }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        Launch::from_env(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_are_told_from_each_other_and_from_none() {
        let four = [
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ];
        let launch = read(&four).unwrap().unwrap();
        assert_eq!(
            (launch.rank, launch.n_ranks, launch.local_rank),
            (3, 4, Some(1))
        );
        let launch = read(&[("WORLD_SIZE", "2"), ("RANK", "1")])
            .unwrap()
            .unwrap();
        assert_eq!(
            (launch.rank, launch.n_ranks, launch.local_rank),
            (1, 2, None)
        );
        // A batch script without a step, a world of one, and no launcher.
        assert_eq!(
            read(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]),
            Ok(None)
        );
        assert_eq!(read(&[("OMPI_COMM_WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(read(&[]), Ok(None));
    }

    #[test]
    fn local_rank_is_believed_before_the_launcher() {
        let both = [
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_LOCALID", "1"),
            ("LOCAL_RANK", "0"),
        ];
        assert_eq!(read(&both).unwrap().unwrap().local_rank, Some(0));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let error = read(&[("PMI_SIZE", "two")]).unwrap_err().to_string();
        assert!(
            error.contains("PMI_SIZE") && error.contains("two"),
            "{error}"
        );
        let error = read(&[("WORLD_SIZE", "2"), ("RANK", "2")]).unwrap_err();
        assert!(error.to_string().contains("rank 2 of 2"), "{error}");
    }
}
