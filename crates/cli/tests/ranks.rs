//! A command that a launcher has started several times over.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use assert_cmd::Command;

/// `olora ARGS` as Slurm would start it, with nothing of a launcher that this
/// test itself may run under.
fn as_rank(rank: usize, args: &[&str]) -> (i32, String) {
    let mut command = Command::cargo_bin("olora").unwrap();
    for (name, _) in std::env::vars() {
        if ["OMPI_", "PMIX_", "PMI_", "SLURM_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
        .env("SLURM_STEP_NUM_TASKS", "2")
        .env("SLURM_PROCID", rank.to_string())
        .args(args);
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_does_not_do_the_work_twice() {
    let (code, said) = as_rank(0, &["train", "no-recipe.toml"]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("srun") && said.contains("--features mpi"),
        "{said}"
    );
    // The first says it for all.
    assert_eq!(as_rank(1, &["train", "no-recipe.toml"]), (2, String::new()));
}

#[test]
fn a_command_that_cannot_be_shared_out_is_refused() {
    let (code, said) = as_rank(0, &["inspect", "model", "nothing"]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("2 processes") && said.contains("`train`"),
        "{said}"
    );
}

#[test]
fn a_variable_that_is_no_number_is_named() {
    let output = Command::cargo_bin("olora")
        .unwrap()
        .env("WORLD_SIZE", "many")
        .args(["train", "no-recipe.toml"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("WORLD_SIZE") && said.contains("many"),
        "{said}"
    );
}
